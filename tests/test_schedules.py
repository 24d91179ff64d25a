"""Schedules against closed forms."""
import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from lm import optim

STEPS = 100
CURVES = [
    (optim.Constant(), lambda p: 1.0),
    (optim.Linear(end=0.2), lambda p: 1 - 0.8 * p),
    (optim.Cosine(end=0.2), lambda p: 0.2 + 0.4 * (1 + np.cos(np.pi * p))),
]


@pytest.mark.parametrize('schedule, curve', CURVES, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize('warmup', [0, 1, 20])
def test_schedules_follow_their_closed_forms(schedule, curve, warmup):
    rate = dataclasses.replace(schedule, warmup=warmup).make(3.0, STEPS)
    np.testing.assert_allclose(rate(0), 3 / (warmup + 1), rtol=1e-6)
    np.testing.assert_allclose(rate(warmup // 2), 3 * (warmup // 2 + 1) / (warmup + 1), rtol=1e-6)
    np.testing.assert_allclose(rate(warmup), 3, rtol=1e-6)
    middle = (STEPS + warmup) // 2
    np.testing.assert_allclose(rate(middle), 3 * curve((middle - warmup) / (STEPS - warmup)), rtol=1e-5)
    np.testing.assert_allclose(rate(jnp.array([STEPS, 2 * STEPS])), 3 * curve(1.0), rtol=1e-5)


def test_wsd_is_flat_then_falls():
    rate = optim.WSD(warmup=10, cooldown=0.2, end=0.1).make(2.0, STEPS)
    rates = rate(jnp.array([0, 10, 50, 80, 90, 100, 120]))
    np.testing.assert_allclose(rates, [2 / 11, 2, 2, 2, 1.1, 0.2, 0.2], rtol=1e-5)
    root = optim.WSD(cooldown=0.2, power=0.5).make(2.0, STEPS)
    np.testing.assert_allclose(root(jnp.array([80, 85, 100])), [2, 1, 0], atol=1e-6)
    np.testing.assert_allclose(optim.WSD(cooldown=0.0).make(2.0, STEPS)(99), 2.0)


def test_inverse_square_root_halves_at_four_times_the_warmup():
    rate = optim.InverseSqrt(warmup=9).make(2.0, STEPS)
    np.testing.assert_allclose(rate(jnp.array([0, 4, 9, 39, 89])), [0.2, 1, 2, 1, 2 / 3], rtol=1e-6)
    np.testing.assert_allclose(optim.InverseSqrt().make(2.0, STEPS)(jnp.array([0, 3])), [2, 1], rtol=1e-6)
