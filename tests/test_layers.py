"""The parts of models: products, norms, dropout, stacks, and the names that weights carry."""
import sys
from functools import partial

import architectures
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from lm import config
from lm.nn import layers
from lm.parallel import sharding

SIZES = {'B': 2, 'T': 3, 'D': 4, 'N': 5, 'H': 6, 'F': 7, 'V': 8}
SPECS = ['BTD,DNH->BTNH', 'BTNH,NHD->BTD', 'BTD,DF->BTF', 'BTD,VD->BTV', 'BTD,DV->BTV']


def operands(spec):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.standard_normal([SIZES[letter] for letter in part]), jnp.float32)
            for part in spec.split('->')[0].split(',')]


def value_and_gradients(product, spec):
    slope = jax.value_and_grad(lambda x, w: jnp.sum(jnp.sin(product(spec, x, w))), (0, 1))
    return architectures.jit(slope)(*operands(spec))


@pytest.mark.parametrize('spec', SPECS)
def test_einsum_is_numpys(spec):
    x, w = operands(spec)
    np.testing.assert_allclose(layers.einsum(spec, x, w), np.einsum(spec, x, w), atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4),
                 value_and_gradients(layers.einsum, spec), value_and_gradients(jnp.einsum, spec))


def test_einsum_over_a_split_length_is_the_same():
    spec = SPECS[0]
    x, w = operands(spec)
    with jax.set_mesh(sharding.make_mesh({'context': 3}, jax.devices()[:3])):
        split = jax.jit(lambda x, w: layers.einsum(spec, sharding.constrain(x, None, 'length', None), w))(x, w)
    assert split.sharding.spec[1] in ('context', ('context',))
    np.testing.assert_allclose(split, np.einsum(spec, x, w), atol=1e-5)


class _Normed(nn.Module):
    kind: str

    @nn.compact
    def __call__(self, x):
        return layers.norm(self, 'norm', x, self.kind)


@pytest.mark.parametrize('kind', ['rms', 'layer', 'layer_bias'])
@pytest.mark.parametrize('offset', [0.0, 100.0])
def test_norms(kind, offset):
    rng = np.random.default_rng(0)
    x = (offset + rng.standard_normal((2, 3, 8))).astype(np.float32)
    scale, bias = rng.standard_normal((2, 8)).astype(np.float32)
    params = {'norm_scale': scale} | ({'norm_bias': bias} if kind == 'layer_bias' else {})
    y = x - (x.mean(-1, keepdims=True, dtype=np.float64) if kind != 'rms' else 0)
    expected = y / np.sqrt((y ** 2).mean(-1, keepdims=True) + 1e-5) * scale + (bias if kind == 'layer_bias' else 0)
    np.testing.assert_allclose(_Normed(kind).apply({'params': params}, x), expected, atol=1e-4)
    boxed = jax.eval_shape(_Normed(kind).init, jax.random.key(0), x)['params']
    assert set(boxed) == set(params)


def test_norm_is_float32_inside_and_keeps_the_dtype():
    x = (300 * jnp.ones((1, 1, 64))).astype(jnp.bfloat16)
    y = _Normed('rms').apply({'params': {'norm_scale': jnp.ones(64)}}, x)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_array_equal(y, 1)


def test_what_is_made_anew_keeps_only_what_it_was_given():
    def product(x, w):
        return jnp.sin(x * x) @ w
    given = jnp.ones((7, 4)), jnp.full((4, 5), 0.5)

    def shapes(made):
        return sorted(x.shape for x in jax.tree.leaves(jax.eval_shape(lambda *each: jax.vjp(made, *each)[1], *given)))
    kept = {made: shapes(made) for made in (product, layers.anew(product))}
    assert kept[product].count((7, 4)) > 1
    assert list(kept.values())[1] == [(4, 5), (7, 4)]
    expected, found = (jax.grad(lambda *each, made=made: jnp.sum(made(*each) ** 2), (0, 1))(*given) for made in kept)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize('ff, width, shards, count', [(14336, 4096, 1, 14), (14336, 4096, 2, 2), (14336, 4096, 4, 1),
                                                     (96, 16, 1, 24), (7, 3, 1, 7)])
def test_hidden_units_are_cut_into_equal_parts(ff, width, shards, count):
    assert layers.parts(ff, width, shards) == count


def test_dropout():
    x, key, rows = jnp.ones((100, 20, 10)), jax.random.key(0), jnp.arange(100)
    drop = partial(layers.dropout, rows=rows)
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
    whole = layers.dropout(x, 0.5, key, jnp.arange(8))
    np.testing.assert_array_equal(layers.dropout(x[3::2], 0.5, key, jnp.arange(8)[3::2]), whole[3::2])


class _Scale(nn.Module):
    @nn.compact
    def __call__(self, x, layer, shared):
        w = layers.weight(self, 'w', {'embed': x.shape[-1], 'embed.out': 2}, layers.normal(1.0), x.dtype)
        return x * w[:, 0] + layer + shared, x


class _Stacked(nn.Module):
    unroll: int = 1

    @nn.compact
    def __call__(self, x):
        return layers.stack(_Scale, 3, unroll=self.unroll, name='blocks')(x, jnp.arange(3.0), jnp.ones(()))


@pytest.mark.parametrize('unroll', [1, 3])
def test_a_stack_applies_one_layer_after_the_other(unroll):
    x = jnp.array([[1.0, 2.0]])
    params, axes = layers.unbox(architectures.jit(_Stacked().init)(jax.random.key(0), x)['params'])
    assert axes == {'blocks': {'w': ('layers', 'embed', 'embed.out')}}
    w = np.asarray(params['blocks']['w'])
    assert w.shape == (3, 2, 2)
    assert len(np.unique(w)) == w.size
    y, inputs = _Stacked(unroll).apply({'params': params}, x)
    expected = np.asarray(x)
    for layer in range(3):
        np.testing.assert_allclose(inputs[layer], expected, rtol=1e-5)
        expected = expected * w[layer, :, 0] + layer + 1
    np.testing.assert_allclose(y, expected, rtol=1e-5)


def test_weights_are_kept_in_float32_and_used_in_the_dtype():
    x = jnp.ones((1, 2), jnp.bfloat16)
    params, _ = layers.unbox(_Scale().init(jax.random.key(0), x, 0, 0)['params'])
    assert params['w'].dtype == jnp.float32
    assert _Scale().apply({'params': params}, x, 0, 0)[0].dtype == jnp.bfloat16


def test_embed_gathers_rows_and_splits_them_over_the_batch():
    table = jnp.arange(12.0).reshape(6, 2)
    np.testing.assert_array_equal(layers.embed(table, jnp.array([[5, 0]])), [[[10, 11], [0, 1]]])
    with jax.set_mesh(sharding.make_mesh({'data': 4}, jax.devices()[:4])):
        rows = jax.jit(layers.embed)(table, jnp.zeros((4, 3), jnp.int32))
    assert rows.sharding.spec == P('data') or rows.sharding.spec[0] in ('data', ('data',))


@pytest.mark.parametrize('quantized, error', [('int8', 0.02), ('fp8', 0.08)])
def test_quantized_products_and_their_gradients_stay_near(quantized, error):
    pytest.importorskip('qwix')
    rng = np.random.default_rng(0)
    x, w, g = (rng.standard_normal(shape).astype(np.float32) for shape in ((64, 128), (128, 96), (64, 96)))

    def both(quantized):
        y, back = jax.vjp(lambda x, w: layers.product(x, w, quantized), x, w)
        return y, *back(g)
    for exact, rounded in zip(both('none'), both(quantized), strict=True):
        distance = np.linalg.norm(rounded - exact) / np.linalg.norm(exact)
        assert distance < error
    assert not np.allclose(both('none')[0], both(quantized)[0], rtol=1e-5)


def test_without_qwix_the_remedy_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, 'qwix._src.core.dot_general_qt', None)
    with pytest.raises(config.Error, match=r"quantized=int8 needs qwix; try pip install 'lm\[quant\]'"):
        layers.product(jnp.ones((2, 2)), jnp.ones((2, 2)), 'int8')
