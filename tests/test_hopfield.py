"""The Hopfield layer: updates against float64, retrieval in one update, an energy that never rises."""
import architectures
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

from lm.models import Decoder, Layer
from lm.nn import MLP, Attention, Hopfield, NoPE
from lm.nn.attention import AttentionSpec
from lm.nn.hopfield import energy, retrieve

rng = np.random.default_rng(0)
PATTERNS = rng.standard_normal((20, 32)).astype(np.float32)
RADIUS = float(np.linalg.norm(PATTERNS, axis=1).max())
GRAM = PATTERNS.astype(np.float64) @ PATTERNS.T
SEPARATION = np.diag(GRAM) - np.where(np.eye(20), -np.inf, GRAM).max(1)  # the paper's Delta of each pattern


@pytest.mark.parametrize('updates', [1, 2, 4])
def test_updates_are_those_of_the_definition(updates):
    query, key, value = (rng.standard_normal((2, 7, heads, 6)) for heads in (4, 2, 2))
    spec = AttentionSpec(causal=True, scale=0.9)
    layer = Hopfield(heads=4, kv_heads=2, updates=updates)
    mixed = layer.mix(*(jnp.asarray(x, jnp.float32) for x in (query, key, value)), spec)
    visible = np.broadcast_to(oracle.sees(7), (2, 7, 7))
    for _ in range(updates - 1):
        query = oracle.attend(query, key, key, visible, scale=0.9)
    np.testing.assert_allclose(mixed, oracle.attend(query, key, value, visible, scale=0.9), atol=2e-6)


@pytest.mark.parametrize('beta', [0.25, 0.5, 1.0, 2.0])
def test_one_update_retrieves_a_pattern_up_to_an_error_that_falls_exponentially(beta):
    """|new - x_i| <= 2 (N - 1) M exp(-beta (Delta_i - 2 M |state - x_i|)): theorem 4, with the pattern for its fixed
    point.
    """
    noise = rng.standard_normal(PATTERNS.shape)
    near = 0.2 * noise / np.linalg.norm(noise, axis=1, keepdims=True)
    assert (SEPARATION > 2 * RADIUS * 0.2).all()  # the patterns are well separated for states so far off
    states = (PATTERNS + near).astype(np.float32)
    errors = np.linalg.norm(np.asarray(retrieve(states, PATTERNS, beta)) - PATTERNS, axis=1)
    bounds = 2 * 19 * RADIUS * np.exp(-beta * (SEPARATION - 2 * RADIUS * np.linalg.norm(near, axis=1)))
    assert (errors <= bounds + 1e-5).all()
    assert beta < 1 or (errors < np.linalg.norm(near, axis=1)).all()
    exact = PATTERNS.astype(np.float64)
    shares = oracle.softmax(beta * (states.astype(np.float64) @ exact.T))
    np.testing.assert_allclose(errors, np.linalg.norm(shares @ exact - exact, axis=1), atol=1e-5)


def test_the_error_of_retrieval_falls_as_fast_as_the_patterns_are_apart():
    """Its logarithm falls by at least Delta for each unit of beta, from the patterns themselves."""
    low, high = (np.linalg.norm(np.asarray(retrieve(PATTERNS, PATTERNS, beta)) - PATTERNS, axis=1)
                 for beta in (0.25, 0.5))
    clear = high > 1e-4  # below that single precision is all there is
    assert clear.sum() >= 10
    slopes = np.log(low / high)[clear] / 0.25
    assert (slopes > 0.9 * SEPARATION[clear]).all()


@pytest.mark.parametrize('beta', [0.1, 0.5, 4.0])
def test_no_update_raises_the_energy_and_updates_come_to_rest(beta):
    states = jnp.asarray(rng.standard_normal((50, 32)), jnp.float32)
    update = jax.jit(lambda states: (retrieve(states, PATTERNS, beta), energy(states, PATTERNS, beta)))
    energies = []
    for _ in range(30):
        states, before = update(states)
        energies.append(before)
    energies = np.array(energies)
    assert (np.diff(energies, axis=0) <= 1e-5 * RADIUS ** 2).all() and (energies >= -1e-4).all()
    assert (energies[0] - energies[-1]).min() > 1
    assert np.abs(update(states)[0] - states).max() < 0.01


def model(attention):
    return Decoder(vocab=11, depth=1, width=24, layer=Layer(attention, MLP(ff=16)))


def test_one_update_is_attention_and_further_ones_cost_flops():
    plain, once, thrice = (model(layer) for layer in (
        Attention(heads=4), Hopfield(heads=4, updates=1), Hopfield(heads=4, updates=3)))
    params = jax.eval_shape(plain.init, jax.random.key(0))
    programs = [jax.jit(decoder.logits).lower(params, jnp.zeros((1, 10), jnp.int32)) for decoder in (plain, once)]
    assert programs[0].as_text() == programs[1].as_text()
    assert plain.flops(10) == once.flops(10)
    assert thrice.flops(10) - once.flops(10) == 3 * 2 * (4 * 5 * 24)  # two updates, 5 keys on average


def test_a_decoder_of_hopfield_layers_is_causal_and_decodes_with_its_cache():
    decoder = model(Hopfield(heads=4, scale=2.0, position=NoPE(), updates=3))
    params = jax.tree.map(lambda x: 20 * x, architectures.jit(decoder.init)(jax.random.key(0)))
    logits, decode = architectures.jit(decoder.logits), architectures.jit(decoder.decode)
    tokens = jnp.array([[3, 1, 4, 1, 5, 9]])
    full = logits(params, tokens)
    np.testing.assert_allclose(full[:, :3], logits(params, tokens.at[:, 4:].set(2))[:, :3], atol=1e-5)
    last, cache = jax.jit(decoder.prefill, static_argnums=3)(params, tokens[:, :3], jnp.array([3]), 6)
    for place in range(3, 6):
        np.testing.assert_allclose(last, full[:, place - 1], atol=1e-4)
        last, cache = decode(params, tokens[:, place], cache)
    np.testing.assert_allclose(last, full[:, 5], atol=1e-4)
