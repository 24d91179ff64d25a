"""The law of the mesh: every mesh of 8 devices gives the loss and the gradient of one."""
import dataclasses
from functools import partial

import architectures
import jax
import numpy as np
import pytest
from architectures import parameters
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from lm import config, train
from lm.models import Decoder, Embedding, Head, Layer
from lm.nn import MLP, Attention, Execution, Experts, Gelu, LayerNorm, Learned, NoPE, RMSNorm, Silu
from lm.parallel import sharding
from lm.parallel.pipeline import Pipeline
from lm.plan import hlo

AXES = ('data', 'fsdp', 'expert', 'context', 'tensor', 'stage')
ALONE = [{axis: 8} for axis in AXES]
PAIRS = [{a: 4, b: 2} for i, a in enumerate(AXES) for b in AXES[i + 1:]]
DENSE = Decoder(50, 8, 32, Layer(Attention(8, 8, qk_norm=RMSNorm()), MLP(0, Silu(), True)), head=Head(tied=False),
                execution=Execution(vocab_chunks=4))
SPARSE = Decoder(50, 8, 32, Layer(Attention(8, position=NoPE()), Experts(count=8, top_k=2, ff=16, balance=0.0),
                                  norm=LayerNorm(bias=False)), embedding=Embedding(Learned(16)))
name = '-'.join


def draw(rows=16, length=16, packed=False):
    rng = np.random.default_rng(0)
    batch = {'inputs': rng.integers(0, 50, (rows, length)), 'targets': rng.integers(0, 50, (rows, length)),
             'weights': rng.random((rows, length)).astype(np.float32)}
    if packed:
        batch['segments'] = np.cumsum(rng.random((rows, length)) < 0.2, -1).astype(np.int32)
        first = np.maximum.accumulate(np.where(np.diff(batch['segments'], prepend=-1), np.arange(length), 0), -1)
        batch['positions'] = (np.arange(length) - first).astype(np.int32)
    return batch


def slope(model, key=None):
    return jax.value_and_grad(lambda params, batch: train.NextToken().loss(model, params, batch, key)[0])


def over(model, sizes, batch, key=None):
    """Returns (loss, gradient) computed over a mesh."""
    mesh = sharding.make_mesh(sizes)
    params = parameters(model)
    places = sharding.mirror(params, model.axes(), mesh)
    with jax.set_mesh(mesh):
        step = architectures.jit(slope(model, key), out_shardings=(NamedSharding(mesh, P()), places))
        return step(jax.device_put(params, places), sharding.put(batch, mesh))


def assert_equal(found, expected):
    np.testing.assert_allclose(found[0], expected[0], rtol=2e-6)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5), found[1], expected[1])


@pytest.fixture(scope='module')
def alone():
    return {model: architectures.jit(slope(model))(parameters(model), draw()) for model in (DENSE, SPARSE)}


@pytest.mark.long
@pytest.mark.parametrize('sizes', [*ALONE, *PAIRS], ids=lambda sizes: name(f'{k}{v}' for k, v in sizes.items()))
@pytest.mark.parametrize('model', [DENSE, SPARSE], ids=['dense', 'sparse'])
def test_every_mesh_is_one_device(model, sizes, alone):
    assert_equal(over(model, sizes, draw()), alone[model])


@pytest.mark.parametrize('sizes', [{'stage': 4, 'fsdp': 2}, {'context': 2, 'tensor': 2, 'data': 2}],
                         ids=lambda sizes: name(f'{k}{v}' for k, v in sizes.items()))
def test_a_mesh_of_more_axes_is_one_device(sizes, alone):
    assert_equal(over(DENSE, sizes, draw()), alone[DENSE])


@pytest.mark.parametrize('pipeline', [Pipeline(), Pipeline(8), Pipeline(4, repeats=2)],
                         ids=['plain', 'more', 'circular'])
def test_a_pipeline_is_its_layers_one_after_the_other(pipeline):
    pattern = tuple(Layer(Attention(4, 2, window=window), dropout=0.1) for window in (3, 0))
    model = Decoder(50, 8 * pipeline.repeats, 16, pattern=pattern, embedding=Embedding(dropout=0.1),
                    execution=Execution(remat='full', pipeline=pipeline))
    batch, key = draw(packed=True), jax.random.key(1)
    expected = architectures.jit(slope(model, key))(parameters(model), batch)
    assert_equal(over(model, {'stage': 4, 'data': 2}, batch, key), expected)


@pytest.mark.parametrize('layer', [
    Layer(Attention(4, bias='all'), MLP(128, Silu(), gated=True, bias=True)), Layer(Attention(4), MLP(128, Gelu()))],
    ids=['swiglu-bias', 'gelu'])
def test_hidden_units_in_chunks_over_a_mesh_that_splits_them_are_the_whole(layer):
    model = Decoder(50, 2, 32, layer, head=Head(tied=False))
    expected = architectures.jit(slope(model))(parameters(model), draw())
    model = dataclasses.replace(model, execution=Execution(remat='full'))
    found = over(model, {'fsdp': 2, 'tensor': 2, 'data': 2}, draw())
    assert_equal(found, expected)


@pytest.mark.parametrize('remat', ['none', 'dots', 'full'])
def test_the_stream_is_kept_split_over_tensor(remat, monkeypatch):
    layer = dataclasses.replace(DENSE.layer, mlp=MLP(96, Silu(), True))  # F/tensor is not D
    model = dataclasses.replace(DENSE, layer=layer, execution=Execution(remat=remat, unroll=1))
    split, expected = compiled(model), {(8, 8, 4, 32): True, (8, 8, 16, 32): False}  # [L B/data T(/tensor) D]
    assert {shape: shape in kept(split.as_text()) for shape in expected} == expected
    monkeypatch.setitem(sharding.RULES, 'stream', sharding.RULES['length'])
    whole = compiled(model)
    assert (8, 8, 16, 32) in kept(whole.as_text())
    saved = 3 / 4 * 8 * 8 * 16 * 32 * 4  # bytes of one array that is kept for all layers, less its quarter
    assert split.memory_analysis().temp_size_in_bytes < whole.memory_analysis().temp_size_in_bytes - saved


def compiled(model):
    mesh, params = sharding.make_mesh({'data': 2, 'tensor': 4}), parameters(model)
    with jax.set_mesh(mesh):
        placed = jax.device_put(params, sharding.mirror(params, model.axes(), mesh))
        return jax.jit(slope(model)).lower(placed, sharding.put(draw(), mesh)).compile()


def kept(text):
    """Returns the shapes of what loops carry or are given."""
    program = hlo.parse(text)
    return {array.shape for body in program.computations.values() for i in body.values() if i.opcode == 'while'
            for array in i.arrays}


@pytest.mark.long
@pytest.mark.parametrize('length', [6, 1])
def test_a_length_that_tensor_does_not_divide_stays_whole(length):
    batch = draw(length=length)
    for model in (DENSE, SPARSE):
        expected = architectures.jit(slope(model))(parameters(model), batch)
        assert_equal(over(model, {'data': 2, 'tensor': 4}, batch), expected)


def test_stages_hold_their_own_layers_only():
    mesh = sharding.make_mesh({'stage': 8})
    places = sharding.mirror(parameters(DENSE), DENSE.axes(), mesh)
    assert places['blocks']['mlp']['up'].shard_shape((8, 32, 128)) == (1, 32, 128)


@pytest.mark.parametrize('depth, period, pipeline, rows, words', [
    (6, 1, Pipeline(), 16, ['depth=6', '4 stages', 'try model.depth=8']),
    (8, 1, Pipeline(repeats=3), 16, ['depth=8', '3 repeats', 'try model.depth=12']),
    (8, 1, Pipeline(2), 16, ['pipeline.microbatches=2', '4 stages', 'try model.execution.pipeline.microbatches=4']),
    (8, 1, Pipeline(8), 12, ['12 rows', 'pipeline.microbatches=8', 'try 16 rows']),
    (8, 2, Pipeline(repeats=2), 16, ['8 layers', 'mesh.stage=4', 'a pattern of 2']),
])
def test_a_pipeline_that_does_not_divide_is_one_clear_line(depth, period, pipeline, rows, words):
    model = Decoder(50, depth, 16, pattern=(Layer(Attention(4)),) * period, execution=Execution(pipeline=pipeline))
    with pytest.raises(config.Error) as caught:
        over(model, {'stage': 4, 'data': 2}, draw(rows))
    assert '\n' not in str(caught.value) and all(word in str(caught.value) for word in words)
