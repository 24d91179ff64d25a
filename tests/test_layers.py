"""What layers are made of: products, norms, activations, dropout, and the names that weights carry."""
import sys
from functools import partial

import architectures
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from jax.sharding import PartitionSpec as P

from lm import config
from lm.nn import MLP, Context, Execution, Gelu, LayerNorm, NoNorm, Relu, Relu2, RMSNorm, Silu, memory, weights
from lm.nn.dropout import dropout
from lm.nn.embedding import look_up
from lm.nn.weights import Scope, Weight
from lm.parallel import sharding

SIZES = {'B': 2, 'T': 3, 'D': 4, 'N': 5, 'H': 6, 'F': 7, 'V': 8}
SPECS = ['BTD,DNH->BTNH', 'BTNH,NHD->BTD', 'BTD,DF->BTF', 'BTD,VD->BTV', 'BTD,DV->BTV']


def operands(spec):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.standard_normal([SIZES[letter] for letter in part]), jnp.float32)
            for part in spec.split('->')[0].split(',')]


def named_by(spec):
    """Returns array -> Weight with an axis name for each letter of the second operand of a spec."""
    return lambda w: Weight(w, tuple(letter.lower() for letter in spec.split('->')[0].split(',')[1]))


def value_and_gradients(product, spec):
    slope = jax.value_and_grad(lambda x, w: jnp.sum(jnp.sin(product(spec, x, w))), (0, 1))
    return architectures.jit(slope)(*operands(spec))


@pytest.mark.parametrize('spec', SPECS)
def test_einsum_is_numpys(spec):
    x, w = operands(spec)

    def einsum(spec, x, w):
        return weights.einsum(spec, x, named_by(spec)(w))
    np.testing.assert_allclose(einsum(spec, x, w), np.einsum(spec, x, w), atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4),
                 value_and_gradients(einsum, spec), value_and_gradients(jnp.einsum, spec))


def test_einsum_over_a_split_length_is_the_same():
    spec = SPECS[0]
    x, w = operands(spec)
    with jax.set_mesh(sharding.make_mesh({'context': 3}, jax.devices()[:3])):
        split = jax.jit(lambda x, w: weights.einsum(spec, sharding.constrain(x, None, 'length', None),
                                                    named_by(spec)(w)))(x, w)
    assert split.sharding.spec[1] in ('context', ('context',))
    np.testing.assert_allclose(split, np.einsum(spec, x, w), atol=1e-5)


def normed(norm):
    return Scope(lambda scope, x: norm(scope, 'norm', x))


@pytest.mark.parametrize('norm', [RMSNorm(), RMSNorm(0.1), LayerNorm(bias=False), LayerNorm(1e-3), NoNorm()], ids=str)
@pytest.mark.parametrize('offset', [0.0, 100.0])
def test_norms(norm, offset):
    rng = np.random.default_rng(0)
    x = (offset + rng.standard_normal((2, 3, 8))).astype(np.float32)
    boxed = jax.eval_shape(normed(norm).init, jax.random.key(0), x).get('params', {})
    names = {RMSNorm(): ['norm_scale'], NoNorm(): [], LayerNorm(1e-3): ['norm_bias', 'norm_scale']}
    assert sorted(boxed) == names.get(norm, ['norm_scale'])
    params = {name: rng.standard_normal(8).astype(np.float32) for name in boxed}
    expected = oracle.normalise(norm, params, 'norm', x.astype(np.float64))
    np.testing.assert_allclose(normed(norm).apply({'params': params}, x), expected, atol=1e-4)


@pytest.mark.parametrize('norm', [RMSNorm(0.1), LayerNorm(0.1)], ids=str)
def test_the_gradient_of_a_norm_is_that_of_its_formula(norm):
    x, g = (np.random.default_rng(0).standard_normal((2, 2, 3, 8)) + 2).astype(np.float32)

    def formula(x):
        centred = x - jnp.mean(x, -1, keepdims=True) if isinstance(norm, LayerNorm) else x
        return centred / jnp.sqrt(jnp.mean(jnp.square(centred), -1, keepdims=True) + norm.epsilon)
    params = {'norm_scale': np.ones(8, np.float32), 'norm_bias': np.zeros(8, np.float32)}
    ours, theirs = (jax.vjp(function, x)[1](g)[0]
                    for function in (lambda x: normed(norm).apply({'params': params}, x), formula))
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_norm_is_float32_inside_and_keeps_the_dtype():
    x = (300 * jnp.ones((1, 1, 64))).astype(jnp.bfloat16)
    y = normed(RMSNorm()).apply({'params': {'norm_scale': jnp.ones(64)}}, x)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_array_equal(y, 1)


@pytest.mark.parametrize('activation', [Gelu(), Gelu(exact=True), Silu(), Relu(), Relu2()], ids=str)
def test_activations_are_those_of_their_papers(activation):
    x = np.linspace(-4, 4, 33, dtype=np.float32)
    np.testing.assert_allclose(activation(x), oracle.activate(activation, x.astype(np.float64)), atol=1e-5)


def test_what_is_recomputed_late_stores_only_its_arguments():
    def product(x, w):
        return jnp.sin(x * x) @ w
    args = jnp.ones((7, 4)), jnp.full((4, 5), 0.5)

    late = memory.checkpoint_late(product)
    assert [x.shape for x in kept(product, *args)].count((7, 4)) > 1
    assert [x.shape for x in kept(late, *args)] == [(4, 5), (7, 4)]
    expected, ours = (jax.grad(lambda *args, function=function: jnp.sum(function(*args) ** 2), (0, 1))(*args)
                      for function in (product, late))
    jax.tree.map(np.testing.assert_array_equal, ours, expected)


def kept(function, *args):
    """Returns the arrays, by shape, that the gradient of function(*args) needs from its forward pass."""
    back = jax.eval_shape(lambda *args: jax.vjp(function, *args)[1], *args)
    return sorted(jax.tree.leaves(back), key=lambda x: x.shape)


@pytest.mark.parametrize('mlp, units', [(MLP(40, Gelu()), 2), (MLP(40, Silu(), gated=True), 3)], ids=str)
def test_without_rematerialisation_an_mlp_keeps_products_and_their_inputs(mlp, units):
    def feed(scope, x):
        return mlp(x, RMSNorm().bind(scope, 'norm', 16), Context(None), execution=Execution('bfloat16'),
                   init=weights.fill(0.1))[0]
    x = jnp.ones((2, 3, 16), jnp.bfloat16)
    params = weights.unbox(weights.declare(feed, jax.random.key(0), x))[0]
    arrays = [x for x in kept(partial(weights.apply, feed), params, x) if x.shape[:2] == (2, 3) or x.shape[0] == 6]
    assert all(array.dtype == jnp.bfloat16 for array in arrays)
    assert sorted(array.shape[-1] for array in arrays) == [16] + [40] * units  # x; up, gate, hidden units


@pytest.mark.parametrize('norm', [RMSNorm(), LayerNorm()], ids=str)
def test_a_norm_keeps_its_input_and_no_float32(norm):
    x = jnp.ones((5, 64), jnp.bfloat16)
    arrays = kept(lambda x: norm.normalise(x, norm_weights(norm, 64)), x)
    assert [array.dtype for array in arrays if array.shape == (5, 64)] == [jnp.bfloat16]


def norm_weights(norm, size):
    return tuple(jnp.ones(size) for _ in range(2 if isinstance(norm, LayerNorm) else 1))


@pytest.mark.parametrize('ff, width, shards, count', [(14336, 4096, 1, 14), (14336, 4096, 2, 2), (14336, 4096, 4, 1),
                                                     (96, 16, 1, 24), (7, 3, 1, 7)])
def test_hidden_units_are_cut_into_equal_chunks(ff, width, shards, count):
    assert memory.mlp_chunks(ff, width, shards) == count


def test_dropout():
    x, key, rows = jnp.ones((100, 20, 10)), jax.random.key(0), jnp.arange(100)
    drop = partial(dropout, rows=rows)
    dropped = np.asarray(drop(x, 0.25, key))
    np.testing.assert_allclose(np.unique(dropped), [0, 1 / 0.75])
    assert abs(np.mean(dropped == 0) - 0.25) < 0.01
    np.testing.assert_allclose(dropped.mean(), 1, atol=0.02)
    np.testing.assert_array_equal(drop(x, 0.25, key), dropped)
    assert not np.array_equal(drop(x, 0.25, jax.random.key(1)), dropped)
    assert drop(x, 0.25, None) is x
    assert drop(x, 0.0, key) is x
    assert drop(x.astype(jnp.bfloat16), 0.25, key).dtype == jnp.bfloat16
    assert len(np.unique(dropped, axis=0)) == 100


def test_a_row_loses_the_same_in_whatever_company():
    x, key = jax.random.normal(jax.random.key(1), (8, 20, 10)), jax.random.key(0)
    whole = dropout(x, 0.5, key, jnp.arange(8))
    np.testing.assert_array_equal(dropout(x[3::2], 0.5, key, jnp.arange(8)[3::2]), whole[3::2])


def scale(scope, x):
    w = weights.weight(scope, 'w', {'embed': x.shape[-1], 'embed.out': 2}, weights.normal(1.0), x.dtype).value
    return x * w[:, 0], x


def test_repeated_parameters_are_stacked_and_differ():
    x = jnp.array([[1.0, 2.0]])
    stacked = Scope(lambda _, x: weights.repeated(scale, 3, 'blocks')(x))
    params, axes = weights.unbox(architectures.jit(stacked.init)(jax.random.key(0), x)['params'])
    assert axes == {'blocks': {'w': ('layers', 'embed', 'embed.out')}}
    w = np.asarray(params['blocks']['w'])
    assert w.shape == (3, 2, 2)
    assert len(np.unique(w)) == w.size


def test_weights_are_kept_in_float32_and_used_in_the_dtype():
    x = jnp.ones((1, 2), jnp.bfloat16)
    params, axes = weights.unbox(Scope(scale).init(jax.random.key(0), x)['params'])
    assert params['w'].dtype == jnp.float32 and axes == {'w': ('embed', 'embed.out')}
    assert Scope(scale).apply({'params': params}, x)[0].dtype == jnp.bfloat16


def test_look_up_gathers_rows_and_splits_them_over_the_batch():
    table = jnp.arange(12.0).reshape(6, 2)
    np.testing.assert_array_equal(look_up(table, jnp.array([[5, 0]])), [[[10, 11], [0, 1]]])
    with jax.set_mesh(sharding.make_mesh({'data': 4}, jax.devices()[:4])):
        rows = jax.jit(look_up)(table, jnp.zeros((4, 3), jnp.int32))
    assert rows.sharding.spec == P('data') or rows.sharding.spec[0] in ('data', ('data',))


@pytest.mark.parametrize('precision, error', [('int8', 0.02), ('fp8', 0.08)])
def test_quantized_products_and_their_gradients_stay_near(precision, error):
    pytest.importorskip('qwix')
    rng = np.random.default_rng(0)
    x, w, g = (rng.standard_normal(shape).astype(np.float32) for shape in ((64, 128), (128, 96), (64, 96)))

    def both(precision):
        y, back = jax.vjp(lambda x, w: weights.product(x, w, precision), x, w)
        return y, *back(g)
    for exact, rounded in zip(both('none'), both(precision), strict=True):
        distance = np.linalg.norm(rounded - exact) / np.linalg.norm(exact)
        assert distance < error
    assert not np.allclose(both('none')[0], both(precision)[0], rtol=1e-5)


def test_without_qwix_the_remedy_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, 'qwix._src.core.dot_general_qt', None)
    with pytest.raises(config.Error, match=r"precision=int8 needs qwix; try pip install 'lm\[quant\]'"):
        weights.product(jnp.ones((2, 2)), jnp.ones((2, 2)), 'int8')
