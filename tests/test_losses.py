"""Losses against float64 numpy."""
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

from lm.nn import losses

rng = np.random.default_rng(0)
LOGITS = (3 * rng.standard_normal((2, 5, 16))).astype(np.float32)
TARGETS = rng.integers(0, 11, (2, 5))


@pytest.mark.parametrize('smoothing', [0.0, 0.1, 1.0])
@pytest.mark.parametrize('shift', [0.0, 1e4, -1e4])
def test_cross_entropy_over_the_real_classes(smoothing, shift):
    logits = (LOGITS + np.float32(shift)).astype(np.float32)
    nll, log_z = losses.cross_entropy(logits, TARGETS, 11, smoothing)
    expected = oracle.cross_entropy(logits[..., :11].astype(np.float64), TARGETS, smoothing)
    np.testing.assert_allclose(nll, expected[0], rtol=1e-5, atol=1e-5 + 2e-7 * abs(shift))
    np.testing.assert_allclose(log_z, expected[1], rtol=1e-5)


def test_gradient_is_softmax_less_the_wanted_distribution():
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(losses.cross_entropy(x, TARGETS, 11, 0.1)[0])))(LOGITS)
    expected = oracle.softmax(LOGITS[..., :11].astype(np.float64)) - (0.9 * np.eye(11)[TARGETS] + 0.1 / 11)
    np.testing.assert_allclose(gradient[..., :11], expected, atol=1e-6)
    np.testing.assert_array_equal(gradient[..., 11:], 0)


@pytest.mark.parametrize('logits, target, expected', [
    ([1e30, 0, 0], 0, 0), ([1e4, -1e4, 0], 1, 2e4), ([0, 0, 0], 2, np.log(3)), ([-1e4, -1e4, -1e4], 0, np.log(3)),
])
def test_extreme_logits(logits, target, expected):
    run = jax.value_and_grad(lambda x: losses.cross_entropy(x, jnp.array(target), 3)[0])
    nll, gradient = run(jnp.array(logits, jnp.float32))
    np.testing.assert_allclose(nll, expected, rtol=1e-4)
    assert np.all(np.isfinite(gradient))


def test_losses_are_float32_also_of_bfloat16_logits():
    nll, log_z = losses.cross_entropy(jnp.asarray(LOGITS, jnp.bfloat16), TARGETS, 11)
    assert nll.dtype == log_z.dtype == jnp.float32
    exact = oracle.cross_entropy(np.asarray(jnp.asarray(LOGITS, jnp.bfloat16), np.float64)[..., :11], TARGETS)[0]
    np.testing.assert_allclose(nll, exact, rtol=1e-5, atol=1e-5)


def test_masked_mean():
    values, weights = rng.standard_normal((3, 4)), rng.uniform(0, 2, (3, 4)) * (rng.random((3, 4)) < 0.5)
    found = losses.masked_mean(values, weights, weights.sum())
    np.testing.assert_allclose(found, np.average(values, weights=weights), rtol=1e-5)


def test_masked_mean_of_nothing_is_zero():
    assert losses.masked_mean(jnp.array([3.0, 4.0]), jnp.zeros(2), 0.0) == 0
    gradient = jax.grad(lambda x: losses.masked_mean(x, jnp.zeros(2), 0.0))(jnp.array([3.0, 4.0]))
    np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize('chunks', [1, 2, 16])
@pytest.mark.parametrize('softcap', [0.0, 2.0])
@pytest.mark.parametrize('smoothing', [0.0, 0.1])
def test_in_chunks_is_the_whole(chunks, softcap, smoothing):
    x, table = (3 * rng.standard_normal(shape).astype(np.float32) for shape in ((2, 5, 8), (16, 8)))
    weights = rng.standard_normal((2, 2, 5)).astype(np.float32)

    def whole(x, table):
        logits = x @ table.T
        logits = softcap * jnp.tanh(logits / softcap) if softcap else logits
        return losses.cross_entropy(logits, TARGETS, 11, smoothing)

    def split(x, table):
        return losses.chunked_cross_entropy(x, table, TARGETS, losses.VocabHead(11, chunks, softcap, smoothing))
    (expected, back), (found, back_split) = jax.vjp(whole, x, table), jax.vjp(split, x, table)
    for one, other in zip((*expected, *back(tuple(weights))), (*found, *back_split(tuple(weights))), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=2e-5)
