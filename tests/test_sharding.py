"""Meshes and partition specs, and a step over 8 host devices that equals the step on one."""
from functools import partial

import architectures
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from lm import config, train
from lm.models import Decoder, Embedding, Head, Layer
from lm.nn import MLP, Attention, Execution, Experts, Relative, Silu
from lm.parallel import reductions, sharding

MESH = {'data': 4, 'fsdp': 2}
LOSS = train.NextToken().loss


@pytest.fixture
def mesh():
    return sharding.make_mesh(MESH)


@pytest.mark.parametrize('sizes, expected', [
    ({'data': -1}, {'data': 8}), ({'data': -1, 'fsdp': 2}, {'data': 4, 'fsdp': 2}), ({'fsdp': 8}, {'fsdp': 8}),
    ({'data': 2, 'fsdp': -1, 'tensor': 2}, {'data': 2, 'fsdp': 2, 'tensor': 2}),
    ({'data': -1, 'fsdp': 1}, {'data': 8, 'fsdp': 1}), ('8xh100', {'data': 1, 'fsdp': 8}),
    ({'tensor': 2, 'data': 4}, {'data': 4, 'tensor': 2}),
])
def test_a_mesh_fills_the_devices(sizes, expected):
    assert list(sharding.make_mesh(sizes).shape.items()) == list(expected.items())


@pytest.mark.parametrize('sizes, words', [
    ({'dat': 8}, ["'dat'", 'data, stage']), ({'data': 3}, ['3', '8', 'try']), ({'data': 16}, ['16', '8', 'try']),
    ({'data': -1, 'fsdp': 3}, ['fsdp', '3', '8', 'try']), ({'data': -1, 'fsdp': -1}, ['-1', 'try']), ({}, ['8', 'try']),
    ({'data': 0}, ['data', '0', 'try']), ({'data': -2, 'fsdp': -4}, ['-2', 'try']),
    ('v5e-16', ['fsdp', '16', '8', 'try']),
])
def test_a_mesh_that_does_not_fit_is_one_clear_line(sizes, words):
    with pytest.raises(config.Error) as caught:
        sharding.make_mesh(sizes)
    assert '\n' not in str(caught.value)
    assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize('names, shape, expected', [
    (('batch', 'length'), (8, 16), P(('data', 'fsdp'), None)),
    (('batch', 'length'), (12, 16), P(('data',), None)),
    (('layers', 'embed', 'heads', 'head_dim'), (2, 16, 4, 4), P(None, ('fsdp',), None, None)),
    (('vocab', 'embed'), (128, 7), P(None, None)),
    (('embed', 'embed'), (4, 4), P(('fsdp',), None)),
    ((None, 'norm'), (4, 4), P(None, None)),
    ((), (), P()),
])
def test_specs_drop_trailing_axes_that_do_not_divide_or_are_absent(names, shape, expected, mesh):
    assert sharding.spec(names, shape, mesh) == expected


def test_a_spec_names_as_many_axes_as_the_array_has(mesh):
    with pytest.raises(ValueError):
        sharding.spec(('embed',), (2, 2), mesh)


@pytest.mark.parametrize('name, heads, expected', [
    ('heads', 4, ('tensor',)), ('kv_heads', 4, ('tensor',)), ('kv_heads', 2, None)])
def test_tensor_axes_split_heads_where_they_divide(name, heads, expected):
    mesh = sharding.make_mesh({'fsdp': 2, 'tensor': 4})
    spec = sharding.spec(('layers', 'embed', name, 'head_dim'), (2, 16, heads, 4), mesh)
    assert spec == P(None, ('fsdp',), expected, None)


def test_moments_are_split_like_their_parameters(mesh):
    params = {'a': {'w': jnp.zeros((4, 3))}, 'b': jnp.zeros((3,))}
    axes = {'a': {'w': ('embed', 'ff')}, 'b': ('norm',)}
    state = (params, [params, {'count': jnp.zeros(())}], {'a': {'w': jnp.zeros((4,))}})
    places = sharding.mirror(state, axes, mesh)
    split, whole = NamedSharding(mesh, P(('fsdp',), None)), NamedSharding(mesh, P(None))
    assert places[0]['a']['w'] == places[1][0]['a']['w'] == split
    assert places[0]['b'] == places[2]['a']['w'] == whole
    assert places[1][1]['count'] == NamedSharding(mesh, P())


def test_rows_become_one_global_array(mesh):
    rows = np.arange(48).reshape(16, 3)
    placed = sharding.put({'inputs': rows}, mesh)['inputs']
    np.testing.assert_array_equal(placed, rows)
    assert {shard.data.shape for shard in placed.addressable_shards} == {(2, 3)}


def test_constrain_without_a_mesh_is_nothing():
    x = jnp.ones((4, 4))
    assert sharding.constrain(x, 'batch', None) is x


def test_the_platform_is_that_of_the_devices(mesh):
    assert sharding.platform() == 'cpu'
    with jax.set_mesh(mesh):
        assert sharding.platform() == 'cpu'


@pytest.fixture
def slice_of_tpus(monkeypatch):
    """Makes the 8 host devices pass for all of a slice of TPUs, large enough that gradients are scattered in steps."""
    monkeypatch.setattr(reductions.hardware, 'find', lambda kind: reductions.hardware.CHIPS['v5e'])
    monkeypatch.setattr(reductions, 'COLLECTIVE_MATMUL', 4)


def test_over_all_of_a_slice_a_weight_is_gathered_once_and_its_gradient_scattered_in_two_steps(slice_of_tpus):
    rng = np.random.default_rng(0)
    x, w = (rng.standard_normal(shape).astype(np.float32) for shape in ((8, 16), (16, 6)))

    def slope(x, w):
        return jax.grad(lambda w: jnp.sum(jnp.square(x @ reductions.reduce_scatter_gradient(w, 'embed', 'ff'))))(w)
    for sizes, pinned in ({'fsdp': 8}, 1 + 2), ({'data': 2, 'fsdp': 4}, 0), ({'fsdp': 4, 'tensor': 2}, 0):
        with jax.set_mesh(sharding.make_mesh(sizes)):
            assert str(jax.make_jaxpr(slope)(x, w)).count('sharding_constraint[') == pinned
            np.testing.assert_allclose(jax.jit(slope)(x, w), 2 * x.T @ x @ w, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('sizes', [{'fsdp': 8}, {'fsdp': 4, 'tensor': 2}], ids=str)
def test_parts_and_steps_of_a_slice_of_tpus_give_the_gradient_of_one_device(sizes, slice_of_tpus):
    layer = Layer(Attention(4, 2, bias='all'), MLP(0, Silu(), gated=True, bias=True))
    model = Decoder(50, 2, 16, layer, head=Head(tied=False), execution=Execution(vocab_chunks=2, remat='full'))
    params = architectures.jit(model.init)(jax.random.key(0))
    batch = {name: np.random.default_rng(0).integers(0, 50, (8, 12)) for name in ('inputs', 'targets')}
    mesh, slope = sharding.make_mesh(sizes), jax.grad(lambda params, batch: LOSS(model, params, batch)[0])
    with jax.set_mesh(mesh):
        found = architectures.jit(slope)(params, sharding.put(batch, mesh))
    expected = architectures.jit(slope)(params, batch)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), found, expected)


def test_a_step_on_eight_devices_is_the_step_on_one(mesh):
    pattern = tuple(Layer(Attention(4, 2, window=window, position=Relative(8, 20)), dropout=0.1) for window in (4, 0))
    model = Decoder(50, 2, 16, pattern=pattern, embedding=Embedding(dropout=0.1))
    places = sharding.mirror(jax.eval_shape(model.init, jax.random.key(0)), model.axes(), mesh)
    rng = np.random.default_rng(0)
    batch = {'inputs': rng.integers(0, 50, (8, 12)), 'targets': rng.integers(0, 50, (8, 12)),
             'weights': rng.random((8, 12)).astype(np.float32)}
    slope = jax.value_and_grad(lambda params, batch: LOSS(model, params, batch, jax.random.key(1))[0])
    alone = architectures.jit(model.init)(jax.random.key(0))
    expected = architectures.jit(slope)(alone, batch)
    with jax.set_mesh(mesh):
        params = architectures.jit(model.init, out_shardings=places)(jax.random.key(0))
        step = architectures.jit(slope, out_shardings=(NamedSharding(mesh, P()), places))
        loss, gradient = step(params, sharding.put(batch, mesh))
    jax.tree.map(np.testing.assert_array_equal, alone, params)
    query = params['blocks']['attention']['query']
    assert query.sharding.shard_shape(query.shape)[1] == 8
    assert {shard.data.nbytes for shard in params['tokens'].addressable_shards} == {params['tokens'].nbytes // 2}
    np.testing.assert_allclose(loss, expected[0], rtol=1e-6)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), gradient, expected[1])


def test_rows_that_do_not_divide_are_refused_with_the_nearest_that_do(mesh):
    sharding.check_rows(16, 2, mesh)
    with pytest.raises(config.Error, match=r'12 rows .* 8 devices \(data x fsdp\); try data\.batch=48\.'):
        sharding.check_rows(36, 3, mesh)
    with pytest.raises(config.Error, match=r'4 rows .* try accumulate=4\.'):
        sharding.check_rows(32, 8, mesh)


@pytest.mark.parametrize('sizes, words', [
    ({'tensor': 8}, ['4 heads', 'mesh.tensor=8', 'try mesh.tensor=4']),
    ({'stage': 8}, ['2 layers', 'mesh.stage=8', 'try mesh.stage=2']),
    ({'expert': 8}, ['6 experts', 'mesh.expert=8', 'try mesh.expert=6']),
])
def test_sizes_that_do_not_divide_are_refused_with_the_nearest_that_do(sizes, words):
    model = Decoder(50, 2, 16, Layer(Attention(4), Experts(count=6, top_k=2, ff=16)))
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    with pytest.raises(config.Error) as caught:
        sharding.check(shapes, model.axes(), sharding.make_mesh(sizes))
    assert all(word in str(caught.value) for word in words)


def test_few_key_heads_may_stay_whole():
    model = Decoder(50, 2, 16, Layer(Attention(8, 2)))
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    sharding.check(shapes, model.axes(), sharding.make_mesh({'tensor': 8}))
