"""Micro-batches over a mesh: the sum of one device, and one sum over the mesh axis data a step."""
import math
from collections import Counter
from dataclasses import replace
from functools import partial

import architectures
import jax
import numpy as np
import pytest
from architectures import parameters

from lm import train
from lm.models import Decoder, Embedding, Head, Layer
from lm.nn import Attention, Execution, Experts
from lm.parallel import reductions, sharding
from lm.plan import costs, hlo

DENSE = Decoder(50, 2, 32, Layer(Attention(8), dropout=0.2), embedding=Embedding(dropout=0.2), head=Head(tied=False),
                execution=Execution(vocab_chunks=2))
BOTH_SIDES = replace(DENSE, layer=replace(DENSE.layer, attention=Attention(8, causal=False)))
SPARSE = Decoder(50, 1, 32, Layer(Attention(8), Experts(count=8, top_k=2, ff=16, balance=0.3, z_loss=0.1), dropout=0.2),
                 embedding=Embedding(dropout=0.2))
KEY, LOSS = jax.random.key(3), train.NextToken().loss
CORE = [(DENSE, {'data': 4, 'fsdp': 2}), (SPARSE, {'data': 4, 'expert': 2})]
LONG = [(model, {'data': 4, axis: 2}) for model in (DENSE, SPARSE) for axis in ('tensor', 'context')]
LONG += [(DENSE, {'data': 8}), (SPARSE, {'data': 4, 'fsdp': 2}), (DENSE, {'data': 4, 'stage': 2}),
         (DENSE, {'data': 2, 'fsdp': 2, 'tensor': 2}), (SPARSE, {'data': 2, 'fsdp': 2, 'expert': 2})]


def batch():
    rng = np.random.default_rng(0)
    tokens = {name: rng.integers(0, 50, (32, 16)) for name in ('inputs', 'targets')}
    return {**tokens, 'weights': rng.random((32, 16)).astype(np.float32)}


def over(model, sizes, **how):
    """Returns (the compiled gradient of two micro-batches on a mesh, what it takes)."""
    mesh, params = sharding.make_mesh(sizes), parameters(model)
    places = sharding.mirror(params, model.axes(), mesh)
    with jax.set_mesh(mesh):
        gradient = architectures.jit(train.accumulated(partial(LOSS, model), 2, **how), out_shardings=(places, None))
        given = jax.device_put(params, places), sharding.put(batch(), mesh), KEY
        return gradient.lower(*given).compile(), given


def summed(compiled, sizes):
    """Returns {how often a step: elements} of what is summed over data."""
    program, found = hlo.parse(compiled.as_text()), Counter()
    for name, times in hlo.runs(program).items():
        for i in program.computations[name].values():
            if i.opcode.startswith('all-reduce') and 'data' in costs.axes(i, sizes):
                found[times] += sum(math.prod(array.shape) for array in i.arrays)
    return found


@pytest.mark.parametrize('model, sizes', CORE + [pytest.param(*case, marks=pytest.mark.long) for case in LONG])
def test_micro_batches_over_a_mesh_are_those_of_one_device(model, sizes):
    gradient, given = over(model, sizes)
    found, measured = gradient(*given)
    expected, known = architectures.jit(train.accumulated(partial(LOSS, model), 2))(parameters(model), batch(), KEY)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=2e-6, atol=1e-6), measured, known)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5), found, expected)
    if reductions.can_defer(sizes):
        counted, held = summed(gradient, sizes), sum(leaf.nbytes / 4 for leaf in jax.tree.leaves(found))
        shards = math.prod(sizes.values()) / sizes['data']
        assert held / shards <= counted[1]
        assert counted[2] < 100, 'gradients are summed for every micro-batch'


@pytest.mark.long
@pytest.mark.parametrize('objective', [train.NextToken(), train.MaskedLM(rate=0.4), train.MaskedDiffusion()])
def test_micro_batches_draw_the_noise_of_the_whole_batch(objective):
    model = DENSE if isinstance(objective, train.NextToken) else BOTH_SIDES
    (found, measured), (expected, known) = (
        architectures.jit(train.accumulated(partial(objective.loss, model), parts))(parameters(model), batch(), KEY)
        for parts in (4, 1))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-6), (found, measured), (expected, known))


def test_the_noise_scale_has_the_gradient_of_each_micro_batch_whole():
    assert summed(over(DENSE, {'data': 8}, noise_scale=True)[0], {'data': 8})[2] > 1000


@pytest.mark.parametrize('sizes, expected', [
    ({}, False), ({'data': 1, 'fsdp': 8}, False), ({'data': 8}, True), ({'data': 4, 'fsdp': 2, 'tensor': 1}, True),
    ({'data': 2, 'fsdp': 2, 'tensor': 2}, False), ({'data': 2, 'fsdp': 32}, True), ({'data': 2, 'fsdp': 64}, False)])
def test_data_is_set_apart_beside_one_axis(sizes, expected):
    assert reductions.can_defer(sizes) == expected
