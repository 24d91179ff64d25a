"""Rows split over the mesh axis 'context' have the loss and gradients of whole rows on one device."""
import re
from functools import partial

import architectures
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm import config, train
from lm.models import Decoder, Embedding, Layer
from lm.nn import Alibi, Attention, Execution, Learned, NoPE, Relative, Rope, attention
from lm.nn.attention import blocked, ring
from lm.parallel import sharding

LENGTH = 32
rng = np.random.default_rng(0)
TOKENS = rng.integers(0, 50, (4, LENGTH + 1))
WEIGHTS = rng.random((4, LENGTH)).astype(np.float32)
STARTS = np.array([[0, 5, 20], [0, 0, 0], [0, 16, 31], [0, 9, 10]])
SEGMENTS = (np.arange(LENGTH) >= STARTS[:, :, None]).sum(1).astype(np.int32)
POSITIONS = np.array([[t - np.flatnonzero(row == row[t])[0] for t in range(LENGTH)] for row in SEGMENTS])
BATCH = {'inputs': TOKENS[:, :-1], 'targets': TOKENS[:, 1:], 'weights': WEIGHTS, 'bytes': np.full(4, 9)}
PACKED = {**BATCH, 'segments': SEGMENTS, 'positions': POSITIONS}


def small(*attentions, depth=0, dropout=0.0, position=None, **fields):
    """Returns a Decoder of one layer for each Attention, or of a depth that repeats them."""
    pattern = tuple(Layer(attention, dropout=dropout) for attention in attentions)
    return Decoder(**{'vocab': 50, 'width': 16, **fields}, depth=depth or len(pattern), pattern=pattern,
                   embedding=Embedding(position, dropout=dropout))


LOSS = train.NextToken().loss
MODELS = {
    'dense': (small(Attention(4)), BATCH),
    'grouped': (small(Attention(4, 2, position=NoPE()), position=Learned(LENGTH)), BATCH),
    'packed': (small(Attention(4, 1, position=Rope(base=100.0)), dropout=0.1), PACKED),
    'windows': (small(Attention(4, window=3, softcap=1.0), Attention(4, softcap=1.0), depth=4,
                      execution=Execution(remat='full', unroll=1)), PACKED),
    'window': (small(Attention(4, window=12)), BATCH), 'one': (small(Attention(4, window=1)), BATCH),
    'alibi': (small(Attention(4, position=Alibi(), softcap=2.0)), PACKED),
    'relative': (small(Attention(4, 2, window=9, position=Relative(8, 20))), BATCH),
}
CORE = [('packed', {'context': 4, 'data': 2}), ('alibi', {'context': 2, 'tensor': 4}),
        ('relative', {'context': 4, 'fsdp': 2})]
LONG = [('windows', {'context': 8}), ('dense', {'context': 8}), ('dense', {'context': 2, 'data': 4}),
        ('dense', {'context': 4, 'tensor': 2}), ('windows', {'context': 4, 'tensor': 2}), ('window', {'context': 8}),
        ('one', {'context': 8}), ('alibi', {'context': 8}), ('packed', {'context': 8}),
        ('relative', {'context': 2, 'tensor': 2, 'data': 2}), ('grouped', {'context': 2, 'tensor': 4}),
        ('grouped', {'context': 2, 'data': 2, 'fsdp': 2})]


@pytest.mark.parametrize('name, sizes', CORE + [pytest.param(*case, marks=pytest.mark.long) for case in LONG])
def test_a_split_length_has_the_loss_and_gradient_of_one_device(name, sizes):
    model, batch = MODELS[name]
    params = architectures.parameters(model)
    slope = architectures.jit(jax.value_and_grad(lambda *given: LOSS(model, *given, jax.random.key(1))[0]))
    loss, gradient = slope(params, batch)
    mesh, axes = sharding.make_mesh(sizes), model.axes()
    with jax.set_mesh(mesh):
        found = slope(jax.device_put(params, sharding.mirror(params, axes, mesh)), sharding.put(batch, mesh))
    np.testing.assert_allclose(found[0], loss, rtol=1e-6)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), found[1], gradient)


def test_a_ring_brings_no_activations_together():
    model = small(Attention(4, 2), width=24, vocab=2000)
    mesh, axes = sharding.make_mesh({'context': 4, 'fsdp': 2}), model.axes()
    params = jax.eval_shape(model.init, jax.random.key(0))
    with jax.set_mesh(mesh):
        given = (jax.tree.map(lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), params,
                              sharding.mirror(params, axes, mesh)), sharding.put(PACKED, mesh))
        text = architectures.jit(jax.grad(lambda *x: LOSS(model, *x)[0])).lower(*given).compile().as_text()
    assert 'collective-permute' in text
    gathered = re.findall(r'f32\[([\d,]+)\]\S* all-gather', text)
    assert gathered
    assert not [shape for shape in gathered if str(LENGTH) in shape.split(',')]


def ringed(order, mesh, **fields):
    """Returns the gradient of a sum over ring attention on a mesh, of queries, keys and values in the text's order."""
    view = attention.AttentionSpec(zigzag=order, **fields)
    return architectures.jit(jax.grad(
        lambda x: jnp.sum(jnp.sin(order.gather(ring.attend(*order.scatter(x), view))))))


@pytest.mark.parametrize('fields', [{'causal': False, 'window': 3}, {'window': 7}, pytest.param(
    {'causal': False}, marks=pytest.mark.long)], ids=['both_ways_window', 'window', 'both_ways'])
def test_the_ring_is_plain_attention_in_blocks_too(fields, monkeypatch):
    monkeypatch.setattr(ring, 'BLOCK', 2)
    order, mesh = attention.Zigzag(4), sharding.make_mesh({'context': 4}, jax.devices()[:4])
    given = tuple(rng.standard_normal((1, LENGTH, heads, 4)).astype(np.float32) for heads in (2, 1, 1))
    expected = jax.grad(lambda x: jnp.sum(jnp.sin(blocked.reference(*x, attention.AttentionSpec(**fields)))))(given)
    with jax.set_mesh(mesh):
        found = ringed(order, mesh, **fields)(given)
    for one, other in zip(found, expected):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_chunks_go_zigzag_and_back():
    order = attention.Zigzag(2)
    np.testing.assert_array_equal(order.order(8), [0, 1, 6, 7, 2, 3, 4, 5])
    np.testing.assert_array_equal(np.concatenate([order.slots(rank, 4) for rank in range(2)]), order.order(8))
    np.testing.assert_array_equal(order.gather(order.scatter(TOKENS[:, :8])), TOKENS[:, :8])


def test_a_mesh_without_context_leaves_a_batch_alone():
    assert attention.shard_sequence(BATCH) == (BATCH, None)
    with jax.set_mesh(sharding.make_mesh({'data': 8, 'context': 1})):
        assert attention.shard_sequence(BATCH) == (BATCH, None)


def test_a_row_that_does_not_cut_is_one_clear_line():
    with jax.set_mesh(sharding.make_mesh({'context': 8})), pytest.raises(config.Error) as caught:
        attention.shard_sequence({'inputs': np.zeros((2, 40), np.int32)})
    assert str(caught.value).startswith('a row of 40 tokens')
    assert 'try data.context=32' in str(caught.value)
