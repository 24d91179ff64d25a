"""The noise scale of simulated quadratics, whose true one is known."""
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lm import config, train
from lm.train import noise_scale

TINY = pathlib.Path(__file__).resolve().parents[1] / 'experiments' / 'tiny.py'
MEAN, SPREAD = jnp.array([3.0, -1.0, 0.5, 2.0]), jnp.array([4.0, 2.0, 6.0, 1.0])
TRUE = float(jnp.sum(SPREAD ** 2) / jnp.sum(MEAN ** 2))  # at parameters of 0: the trace over the squared gradient


def loss(params, batch, key):
    """Returns half the squared distance from points drawn around MEAN: the gradient of one is parameters - point."""
    each = 0.5 * jnp.sum(jnp.square(params['x'] - batch['points']), -1)
    weight = jnp.sum(batch['weights'])
    return jnp.sum(each * batch['weights']) / jnp.maximum(weight, 1), {'loss': jnp.mean(each), 'weight': weight}


def steps(count, parts, ragged=False):
    """Returns {name: [count]} of what steps of 32 points in `parts` micro-batches measure, the parameters held at 0."""
    tx = optax.set_to_zero()
    params = {'x': jnp.zeros(4)}
    state = train.State(jnp.int32(0), params, tx.init(params), jnp.int32(0))
    step = train.make_step(loss, tx, accumulate=parts, noise_scale=True)

    def one(key):
        drawn, left = jax.random.split(key)
        points = MEAN + SPREAD * jax.random.normal(drawn, (32, 4))
        weights = jax.random.bernoulli(left, 0.5, (32,)).astype(jnp.float32) if ragged else jnp.ones(32)
        return step(state, {'points': points, 'weights': weights})[1]
    return jax.device_get(jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), count)))


@pytest.mark.parametrize('parts, ragged', [(2, False), (8, False), (4, True)])
def test_the_scale_of_a_quadratic_is_its_own(parts, ragged):
    measured = steps(20_000, parts, ragged)
    scale = noise_scale.Scale(parts)
    scale.DECAY = 0.9998
    for square, norm, tokens in zip(measured['grad_square'], measured['grad_norm'], measured['weight'], strict=True):
        scale.take(float(square), float(norm) ** 2, float(tokens))
    np.testing.assert_allclose(scale.value()['noise_scale'], TRUE, rtol=0.05)


def test_both_estimates_are_unbiased():
    measured, scale = steps(20_000, 4), noise_scale.Scale(4)
    scale.DECAY = 0.0
    found = []
    for square, norm in zip(measured['grad_square'], measured['grad_norm'], strict=True):
        scale.take(float(square), float(norm) ** 2, 32.0)
        found.append(scale.sums)
    error = np.std(found, axis=0) / np.sqrt(len(found))
    assert np.all(np.abs(np.mean(found, axis=0) - [float(jnp.sum(SPREAD ** 2)), float(jnp.sum(MEAN ** 2))]) < 4 * error)


def test_one_batch_a_step_tells_nothing():
    assert 'grad_square' not in steps(2, 1)
    assert noise_scale.Scale(1).value() == {}


@pytest.mark.parametrize('asked', [False, True])
def test_a_run_measures_it_where_asked_to(asked):
    settings = config.load(TINY, ['accumulate=2', f'diagnosis.noise_scale={asked}'.lower()]).config
    *_, init, step = train.parts(settings)
    measured = jax.eval_shape(lambda: step(init(), settings.data.example())[1])
    assert ('grad_square' in measured) == asked


def test_it_needs_micro_batches():
    with pytest.raises(config.Error, match='accumulate=1 makes one; try accumulate=2'):
        config.load(TINY, ['diagnosis.noise_scale=true'])
