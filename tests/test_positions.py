"""Position schemes against their papers' formulas."""
import architectures
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from architectures import parameters, small

from lm import config
from lm.models import Embedding, Layer
from lm.nn import Attention, positions

UNORDERED = Layer(Attention(4, window=1, position=positions.NoPE()))


@pytest.mark.parametrize('rope', [
    positions.Rope(), positions.Rope(base=500_000.0), positions.Rope(factor=8.0), positions.Rope(fraction=0.25),
    positions.Rope(500_000.0, factor=8.0, original=8192), positions.Rope(500_000.0, 32.0, 8192, 1.0, 4.0),
    positions.Rope(1e6, 8.0, original=4096, low=2.0, high=8.0),
], ids=str)
def test_rope_frequencies(rope):
    np.testing.assert_allclose(rope.frequencies(64), oracle.rope_frequencies(rope, 64), rtol=2e-5)


@pytest.mark.parametrize('fraction', [0.0, 1.5, -1.0])
def test_a_bad_fraction_is_one_clear_line(fraction):
    with pytest.raises(config.Error, match=rf'^fraction={fraction} is not a float in \(0, 1\]; try fraction='):
        positions.Rope(fraction=fraction)


def test_llama_scaling_has_its_three_bands():
    """With factor 32 of 8,192 tokens, short wavelengths keep their pace, long ones slow down 32 times."""
    plain = positions.Rope(500_000.0).frequencies(64)
    ratio = np.asarray(positions.Rope(500_000.0, 32.0, 8192).frequencies(64) / plain)
    wavelength = 2 * np.pi / np.asarray(plain)
    np.testing.assert_allclose(ratio[wavelength < 8192 / 4], 1)
    np.testing.assert_allclose(ratio[wavelength > 8192], 1 / 32, rtol=1e-6)
    between = ratio[(wavelength >= 8192 / 4) & (wavelength <= 8192)]
    assert len(between)
    assert np.all((between > 1 / 32) & (between < 1))


def test_rotation_keeps_lengths_and_knows_only_distance():
    rope, x = positions.Rope(), np.random.default_rng(0).standard_normal((2, 1, 2, 1, 8)).astype(np.float32)

    def product(at):
        query, key = (positions.rotate(y, rope.angles(jnp.array([[t, t + 5]]), 8)) for y, t in zip(x, at))
        return jnp.sum(query * key, -1), jnp.sum(jnp.square(query), -1)
    (near, length), (far, _) = product((7, 3)), product((107, 103))
    np.testing.assert_allclose(near, far, atol=1e-4)
    np.testing.assert_allclose(length, np.sum(np.square(x[0]), -1), rtol=1e-5)


def test_a_fraction_leaves_the_rest_of_the_head_alone():
    x = np.random.default_rng(0).standard_normal((1, 3, 2, 8)).astype(np.float32)
    turned = positions.rotate(x, positions.Rope(fraction=0.5).angles(jnp.arange(3)[None], 8))
    np.testing.assert_array_equal(turned[..., 4:], x[..., 4:])
    assert np.all(turned[:, 1:, :, :4] != x[:, 1:, :, :4])


@pytest.mark.parametrize('heads', [1, 2, 3, 6, 8, 12, 20])
def test_alibi_slopes(heads):
    np.testing.assert_allclose(positions.alibi_slopes(heads), oracle.alibi_slopes(heads), rtol=1e-6)


def test_alibi_slopes_of_eight_heads_are_the_papers():
    np.testing.assert_allclose(positions.alibi_slopes(8), [1 / 2 ** n for n in range(1, 9)])


def test_relative_buckets_of_t5():
    """Buckets of 32 over 128: 0..15 exact, then ever wider; compared away from the edges, where rounding decides."""
    scheme = positions.Relative()
    distance = np.array([0, 1, 15, 16, 17, 20, 25, 40, 60, 100, 127, 128, 1000])
    expected = [oracle.relative_bucket(int(d), 32, 128) for d in distance]
    np.testing.assert_array_equal(scheme.bucket(-jnp.asarray(distance)), expected)
    np.testing.assert_array_equal(scheme.bucket(jnp.asarray(distance[1:])), 0)
    assert expected[-1] == 31


def test_relative_buckets_both_ways_use_half_for_each_side():
    scheme = positions.Relative(causal=False)
    back = np.array([0, 1, 7, 8, 10, 15, 25, 60, 127, 128, 500, -1, -7, -8, -10, -25, -127, -500])
    np.testing.assert_array_equal(scheme.bucket(-back), [oracle.relative_bucket(int(d), 32, 128, False) for d in back])
    distance = jnp.arange(1, 200)
    before, after = scheme.bucket(-distance), scheme.bucket(distance)
    np.testing.assert_array_equal(after - before, 16)
    assert int(before.max()) == 15
    np.testing.assert_array_equal(before[:7], distance[:7])


def test_a_text_longer_than_the_learned_positions_is_one_clear_line():
    model = small(layer=UNORDERED, embedding=Embedding(positions.Learned(8)))
    assert model.limit == 8 and small().limit == 0
    with pytest.raises(config.Error) as caught:
        jax.eval_shape(model.logits, parameters(model), np.zeros((1, 9), np.int32))
    assert str(caught.value) == '9 tokens do not fit position.length=8; try model.embedding.position.length=9.'


@pytest.mark.parametrize('position', [positions.Learned(16), positions.Sinusoidal()], ids=str)
def test_absolute_positions_are_looked_up(position):
    """A row that starts at position 5 is the tail of one that starts at 0, where attention cannot tell them apart."""
    model = small(layer=UNORDERED, embedding=Embedding(position))
    params, tokens = parameters(model), np.arange(12, dtype=np.int32)[None]
    logits = architectures.jit(model.logits)
    whole = logits(params, tokens)
    tail = logits(params, tokens[:, 5:], None, np.arange(5, 12)[None])
    np.testing.assert_allclose(tail, whole[:, 5:], atol=1e-5)
    assert np.abs(logits(params, tokens[:, 5:]) - whole[:, 5:]).max() > 1e-3
