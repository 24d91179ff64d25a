"""Rows split over the mesh axis 'context' have the loss and gradients of whole rows on one device."""
from functools import partial

import architectures
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from architectures import small
from jax.sharding import NamedSharding

from lm import attention, config, sharding
from lm.attention import blocked, ring, splash
from lm.positions import Alibi, Learned, Relative, Rope

LENGTH = 32
rng = np.random.default_rng(0)
TOKENS = rng.integers(0, 50, (4, LENGTH + 1))
WEIGHTS = rng.random((4, LENGTH)).astype(np.float32)
STARTS = np.array([[0, 5, 20], [0, 0, 0], [0, 16, 31], [0, 9, 10]])
SEGMENTS = (np.arange(LENGTH) >= STARTS[:, :, None]).sum(1).astype(np.int32)
POSITIONS = np.array([[t - np.flatnonzero(row == row[t])[0] for t in range(LENGTH)] for row in SEGMENTS])
BATCH = {'inputs': TOKENS[:, :-1], 'targets': TOKENS[:, 1:], 'weights': WEIGHTS}
PACKED = {**BATCH, 'segments': SEGMENTS, 'positions': POSITIONS}

MODELS = {
    'dense': (small(), BATCH), 'grouped': (small(kv_heads=2, position=Learned(LENGTH)), BATCH),
    'packed': (small(kv_heads=1, position=Rope(base=100.0)), PACKED),
    'windows': (small(windows=(3, 0), attention_softcap=1.0), PACKED),
    'alibi': (small(position=Alibi(), attention_softcap=2.0), PACKED),
    'relative': (small(position=Relative(8, 20), windows=(9, 0), kv_heads=2), BATCH),
}
MESHES = [('dense', {'context': 8}), ('packed', {'context': 4, 'data': 2}), ('windows', {'context': 8}),
          ('windows', {'context': 4, 'tensor': 2}), ('alibi', {'context': 2, 'tensor': 4}),
          ('relative', {'context': 4, 'fsdp': 2}), ('relative', {'context': 2, 'tensor': 2, 'data': 2}),
          ('grouped', {'context': 2, 'tensor': 4}), ('grouped', {'context': 2, 'data': 2, 'fsdp': 2})]


@pytest.mark.parametrize('name, sizes', MESHES, ids=lambda value: value if isinstance(value, str) else '-'.join(
    f'{axis}{size}' for axis, size in value.items()))
def test_a_split_length_has_the_loss_and_gradient_of_one_device(name, sizes):
    model, batch = MODELS[name]
    params = architectures.parameters(model)
    slope = architectures.jit(jax.value_and_grad(lambda params, batch: model.loss(params, batch)[0]))
    loss, gradient = slope(params, batch)
    mesh = sharding.make_mesh(sizes)
    with jax.set_mesh(mesh):
        places = sharding.mirror(params, model.axes(), mesh)
        found = slope(jax.device_put(params, places), sharding.put(batch, mesh))
    np.testing.assert_allclose(found[0], loss, rtol=1e-6)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), found[1], gradient)
