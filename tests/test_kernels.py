"""Every kernel that can run here against plain attention; the others compiled for hardware that is not here."""
from dataclasses import replace

import architectures
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm import attention, config, sharding
from lm.attention import blocked, choice, splash

rng = np.random.default_rng(0)


def draw(length, heads, groups, size=64):
    """Returns queries, keys and values of two rows."""
    return tuple(rng.standard_normal((2, length, n, size)).astype(np.float32) for n in (heads, groups, groups))


def segments_of(length):
    cuts = np.sort(rng.integers(0, length, (2, 3)))
    return ((np.arange(length) >= cuts[:, :, None]).sum(1).astype(np.int32),) * 2


SPLASH = {
    'causal': (256, 2, 2, {}), 'window_grouped': (256, 4, 2, {'window': 100}),
    'softcap_segments': (256, 2, 1, {'softcap': 2.0, 'segments': segments_of(256)}),
    'odd': (200, 2, 2, {'scale': 0.1}), 'odd_segments_window': (130, 2, 2, {'segments': segments_of(130), 'window': 7}),
    'both_ways': (130, 2, 1, {'causal': False}), 'both_ways_window': (256, 1, 1, {'causal': False, 'window': 30}),
}


def slope_of(attend, view):
    return architectures.jit(jax.value_and_grad(lambda x: jnp.sum(jnp.sin(attend(*x, view)))))


@pytest.mark.parametrize('length, heads, groups, fields', SPLASH.values(), ids=SPLASH)
def test_splash_is_plain_attention(length, heads, groups, fields):
    given, view = draw(length, heads, groups), attention.View(**fields)
    found = slope_of(lambda *x: splash.attend(*x, interpret=True), view)(given)
    expected = slope_of(blocked.reference, view)(given)
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-4)
    for one, other in zip(found[1], expected[1]):
        np.testing.assert_allclose(one, other, atol=2e-5)
