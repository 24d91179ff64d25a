"""Every kernel that can run here against plain attention; the others compiled for hardware that is not here."""
import json
import os
import pathlib
import subprocess
import sys

import architectures
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm import config
from lm.nn import attention
from lm.nn.attention import blocked, dispatch, splash
from lm.nn.positions import alibi_slopes
from lm.parallel import sharding

HERE = pathlib.Path(__file__).parent
rng = np.random.default_rng(0)


def draw(length, heads, groups, size=64):
    """Returns queries, keys and values of two rows."""
    return tuple(rng.standard_normal((2, length, n, size)).astype(np.float32) for n in (heads, groups, groups))


def segments_of(length):
    cuts = np.sort(rng.integers(0, length, (2, 3)))
    return ((np.arange(length) >= cuts[:, :, None]).sum(1).astype(np.int32),) * 2


def slope_of(attend, view):
    return architectures.jit(jax.value_and_grad(lambda x: jnp.sum(jnp.sin(attend(*x, view)))))


def same(found, expected):
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-4)
    for one, other in zip(found[1], expected[1]):
        np.testing.assert_allclose(one, other, atol=2e-5)


def interpreted(query, key, value, view):
    return splash.attend(query, key, value, view, interpret=True)


SPLASH = {
    'grouped_causal_odd': (200, 4, 2, {'scale': 0.1}),
    'softcap_segments_window': (256, 2, 1, {'softcap': 2.0, 'segments': segments_of(256), 'window': 100}),
    'both_ways': (130, 2, 2, {'causal': False}),
    'both_ways_window_segments': (256, 1, 1, {'causal': False, 'window': 30, 'segments': segments_of(256)}),
}


@pytest.mark.parametrize('length, heads, groups, fields', SPLASH.values(), ids=SPLASH)
def test_splash_is_plain_attention(length, heads, groups, fields):
    given, view = draw(length, heads, groups), attention.AttentionSpec(**fields)
    same(slope_of(interpreted, view)(given), slope_of(blocked.reference, view)(given))


@pytest.mark.parametrize('sizes, groups', [({'data': 2, 'tensor': 4}, 2), ({'fsdp': 2, 'tensor': 2}, 4)])
def test_splash_on_a_mesh_is_plain_attention(sizes, groups):
    given, view = draw(130, 4, groups), attention.AttentionSpec(segments=segments_of(130), window=50)
    expected = slope_of(blocked.reference, view)(given)
    with jax.set_mesh(sharding.make_mesh(sizes, jax.devices()[:np.prod(list(sizes.values()))])):
        step = slope_of(interpreted, view)
        if groups == 4:
            assert 'all-gather' not in step.lower(given).compile().as_text()
        same(step(given), expected)


def test_splash_over_a_split_length_is_plain_attention():
    given, order = draw(512, 2, 1), attention.Zigzag(2)
    segments = segments_of(512)
    fields = {'window': 200, 'softcap': 3.0}
    expected = slope_of(blocked.reference, attention.AttentionSpec(segments=segments, **fields))(given)
    view = attention.AttentionSpec(segments=order.scatter(segments), zigzag=order, **fields)
    with jax.set_mesh(sharding.make_mesh({'context': 2}, jax.devices()[:2])):
        found = slope_of(lambda *x: order.gather(interpreted(*order.scatter(x[:3]), x[3])), view)(given)
    same(found, expected)


def pick(platform, monkeypatch, shape=(2, 256, 4, 64), dtype=jnp.float32, **fields):
    monkeypatch.setattr(sharding, 'platform', lambda: platform)
    query = jax.ShapeDtypeStruct(shape, dtype)
    return dispatch.pick(query, query, attention.AttentionSpec(**fields))


@pytest.fixture
def said():
    dispatch.say.cache_clear()
    yield
    dispatch.say.cache_clear()


BIAS = (alibi_slopes(4), lambda slopes, query, key: -slopes[:, None, None] * (query[:, None] - key))


def test_each_platform_has_its_kernel_and_says_so_once(monkeypatch, capsys, said):
    assert pick('tpu', monkeypatch) == 'splash'
    assert pick('tpu', monkeypatch, window=5) == 'splash'
    assert pick('cpu', monkeypatch) == 'blocked'
    assert pick('cpu', monkeypatch, zigzag=attention.Zigzag(2)) == 'ring'
    assert capsys.readouterr().err.splitlines() == [
        'attention: splash on tpu', 'attention: blocked on cpu', 'attention: ring on cpu']


@pytest.mark.parametrize('platform, fields, fast, slow, words', [
    ('tpu', {'bias': BIAS}, 'splash', 'blocked', 'Alibi'),
    ('tpu', {'zigzag': attention.Zigzag(4)}, 'splash', 'ring', '64 tokens'),
    ('gpu', {}, 'cudnn', 'blocked', 'bfloat16'),
    ('gpu', {'softcap': 5.0, 'dtype': jnp.bfloat16}, 'cudnn', 'blocked', 'softcap=5.0'),
    ('gpu', {'bias': BIAS, 'dtype': jnp.bfloat16}, 'cudnn', 'blocked', 'Alibi'),
    ('gpu', {'zigzag': attention.Zigzag(4), 'dtype': jnp.bfloat16}, 'cudnn', 'ring', 'the mesh shards'),
])
def test_a_fall_back_is_one_warning_with_the_reason(platform, fields, fast, slow, words, monkeypatch, capsys, said):
    assert [pick(platform, monkeypatch, **fields) for _ in range(2)] == [slow, slow]
    warning, choice_line = capsys.readouterr().err.splitlines()
    assert warning.startswith(f'warning: attention falls back from {fast} to {slow}')
    assert words in warning
    assert choice_line == f'attention: {slow} on {platform}'


@pytest.mark.parametrize('platform, fields, words', [
    ('cpu', {'kernel': 'splash'}, 'TPU'), ('cpu', {'kernel': 'cudnn'}, 'NVIDIA'),
    ('cpu', {'kernel': 'ring'}, 'context'),
    ('tpu', {'kernel': 'splash', 'bias': BIAS}, 'Alibi'),
    ('cpu', {'kernel': 'blocked', 'zigzag': attention.Zigzag(2)}, 'the mesh shards'),
])
def test_a_kernel_picked_by_hand_that_cannot_is_one_clear_line(platform, fields, words, monkeypatch, said):
    with pytest.raises(config.Error) as caught:
        pick(platform, monkeypatch, **fields)
    assert '\n' not in str(caught.value)
    assert all(word in str(caught.value) for word in (fields['kernel'], words, 'try model.execution.kernel=auto'))


def test_a_kernel_picked_by_hand_is_taken(monkeypatch, said):
    assert pick('cpu', monkeypatch, kernel='reference') == 'reference'
    assert pick('tpu', monkeypatch, kernel='blocked') == 'blocked'


def test_decoding_is_plain_and_silent(capsys, said):
    query, key, value = draw(8, 2, 2, 4)
    view = attention.AttentionSpec(index=jnp.array([[7], [3]]), kernel='splash')
    attention.attend(query[:, :1], key, value, view)
    assert capsys.readouterr().err == ''


def ahead(**case):
    """Returns what tests/ahead.py prints of a case."""
    done = subprocess.run([sys.executable, HERE / 'ahead.py', json.dumps(case)], capture_output=True, text=True,
                          cwd=HERE.parent, env={**os.environ, 'PYTHONPATH': str(HERE.parent), 'XLA_FLAGS': '',
                                                'ALLOW_MULTIPLE_LIBTPU_LOAD': '1'})
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


SPLASHED = ['splash_mha_dkv', 'splash_mha_dq', 'splash_mha_fwd']


@pytest.mark.long
@pytest.mark.parametrize('topology, mesh, length, model', [
    ('v5e:2x4', {'data': 2, 'fsdp': 2, 'tensor': 2}, 2048, {'windows': [256, 0], 'softcap': 30.0}),
    ('v5e:2x2', {'fsdp': 4}, 1100, {'head_dim': 80, 'remat': 'full'}),
    ('v5e:2x2', {'fsdp': 2, 'tensor': 2}, 1024, {'head_dim': 128}),
])
def test_splash_compiles_for_tpu_and_gathers_no_activations_but_the_stream(topology, mesh, length, model):
    pytest.importorskip('libtpu', reason='libtpu is not installed')
    found = ahead(topology=topology, mesh=mesh, shape=[8, length], model=model)
    assert found['kernels'] == SPLASHED
    assert found['gathered']
    gathered = [shape for shape in found['gathered'] if length in shape]
    assert all('tensor' in mesh and shape[-2:] == [length, 256] for shape in gathered), gathered  # [B T D], no heads


@pytest.mark.long
def test_a_split_length_on_tpu_gathers_keys_and_values_alone():
    pytest.importorskip('libtpu', reason='libtpu is not installed')
    found = ahead(topology='v5e:2x2', mesh={'fsdp': 2, 'context': 2}, shape=[4, 2048],
                  model={'head_dim': 128, 'depth': 1})
    assert found['kernels'] == SPLASHED
    long = [shape for shape in found['gathered'] if 2048 in shape and shape[0] != 's32']
    assert long
    assert not [shape for shape in long if np.prod(shape[1:]) > 2 * 2048 * 2 * 128]


@pytest.mark.long
def test_cudnn_compiles_for_nvidia_and_gathers_no_activations():
    pytest.importorskip('jax_cuda13_plugin', reason='the CUDA plugin is not installed')
    pytest.importorskip('nvidia.cudnn', reason='cuDNN is not installed')
    found = ahead(topology='1x1x4', mesh={'data': 2, 'fsdp': 2}, shape=[8, 1024],
                  model={'windows': [256, 0], 'head_dim': 64})
    assert found['kernels'] == ['__cudnn$fmhaScaleBiasSoftmax', '__cudnn$fmhaScaleBiasSoftmaxBackward']
    assert not [shape for shape in found['gathered'] if 1024 in shape]
