"""`attend` against attention written one query at a time, in one block and in several."""
import architectures
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

from lm.nn import attention
from lm.nn.attention import blocked

LENGTH, HEADS = 24, 4
rng = np.random.default_rng(0)
QUERY, KEY, VALUE = (rng.standard_normal((2, LENGTH, heads, 6)).astype(np.float32) for heads in (HEADS, 2, 2))
SEGMENTS = np.array([[1] * 7 + [2] * 17, [1] * 20 + [2] * 3 + [3]], np.int32)
SLOPES = np.array([1.0, 0.5, 0.25, 0.0])
SPECS = {
    'full': {}, 'window': {'window': 5}, 'wide': {'window': 24}, 'one': {'window': 1}, 'softcap': {'softcap': 0.7},
    'segments': {'segments': SEGMENTS}, 'bias': {'bias': SLOPES}, 'both_ways': {'causal': False},
    'both_ways_window': {'causal': False, 'window': 3},
    'all': {'window': 9, 'softcap': 2.0, 'segments': SEGMENTS, 'bias': SLOPES},
}


def spec_of(fields):
    fields = dict(fields)
    if 'segments' in fields:
        fields['segments'] = (fields['segments'],) * 2
    if 'bias' in fields:
        fields['bias'] = (jnp.asarray(SLOPES), lambda slopes, query, key:
                          -slopes[:, None, None] * (query[:, None] - key[None]))
    return attention.AttentionSpec(**fields)


def expected_of(fields, scale=1.0):
    fields = dict(fields)
    softcap, bias = fields.pop('softcap', 0.0), fields.pop('bias', None)
    visible = np.broadcast_to(oracle.sees(LENGTH, **fields), (2, LENGTH, LENGTH))
    back = np.arange(LENGTH)[:, None] - np.arange(LENGTH)
    bias = None if bias is None else -bias[:, None, None] * back
    query, key, value = (x.astype(np.float64) for x in (scale * QUERY, KEY, VALUE))
    return oracle.attend(query, key, value, visible, bias, softcap)


@pytest.mark.parametrize('block', [8, 24])
@pytest.mark.parametrize('fields', SPECS.values(), ids=SPECS)
def test_attention_is_the_oracles(fields, block, monkeypatch):
    monkeypatch.setattr(blocked, 'BLOCK', block)
    out = architectures.jit(lambda *x: attention.attend(*x, spec_of(fields)))(QUERY, KEY, VALUE)
    np.testing.assert_allclose(out, expected_of(fields), atol=1e-5)


def test_blocks_have_the_gradient_of_one_block(monkeypatch):
    gradients = []
    for block in (24, 8):
        monkeypatch.setattr(blocked, 'BLOCK', block)
        gradient = jax.grad(lambda x: jnp.sum(jnp.square(attention.attend(*x, spec_of(SPECS['all'])))))
        gradients.append(architectures.jit(gradient)((QUERY, KEY, VALUE)))
    for one, other in zip(*gradients):
        np.testing.assert_allclose(one, other, atol=1e-5)


@pytest.mark.parametrize('name', ['full', 'window', 'bias', 'softcap'])
def test_queries_at_an_index_are_rows_of_the_whole(name):
    index = np.array([[3, 4], [0, 23]], np.int32)
    query = np.take_along_axis(QUERY, index[:, :, None, None], 1)
    spec = spec_of(SPECS[name] | {'index': jnp.asarray(index)})
    out = architectures.jit(lambda *x: attention.attend(*x, spec))(query, KEY, VALUE)
    np.testing.assert_allclose(out, np.take_along_axis(expected_of(SPECS[name]), index[:, :, None, None], 1), atol=1e-5)


def test_the_scale_replaces_the_root_of_the_head():
    spec = attention.AttentionSpec(scale=2 * 6 ** -0.5)
    out = architectures.jit(lambda *x: attention.attend(*x, spec))(QUERY, KEY, VALUE)
    np.testing.assert_allclose(out, expected_of({}, scale=2.0), atol=1e-5)


def test_large_scores_stay_finite():
    run = jax.value_and_grad(lambda q: jnp.sum(attention.attend(q, KEY, VALUE, attention.AttentionSpec(window=3))))
    value, gradient = architectures.jit(run)(QUERY * 1e18)
    assert np.isfinite(value)
    assert np.all(np.isfinite(gradient))
