"""The laws of the decoder, over every architecture switch."""
import dataclasses
import typing
from functools import partial

import architectures
import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracle
import pytest
from architectures import DECODERS, parameters, small

from lm.models.decoder import Decoder
from lm.nn import positions as schemes
from lm.nn.attention import blocked

LENGTH = 12
every = pytest.mark.parametrize('model', DECODERS.values(), ids=DECODERS)


@partial(architectures.jit, static_argnums=0)
def forward(model, params, tokens):
    return model.logits(params, tokens)


@partial(architectures.jit, static_argnums=0)
def slope(model, params, batch, key=None):
    """Returns (loss, gradient)."""
    return jax.value_and_grad(lambda p: model.loss(p, batch, key)[0])(params)


@partial(architectures.jit, static_argnums=0)
def continued(model, params, tokens, lengths):
    """Returns logits [B 5 V] from a prefill of tokens[:, :8] and 4 decode steps, each row fed its own next token."""
    first, cache = model.prefill(params, tokens[:, :8], lengths, LENGTH)

    def advance(cache, _):
        token = jnp.take_along_axis(tokens, cache['length'][:, None], 1)[:, 0]
        logits, cache = model.decode(params, token, cache)
        return cache, logits
    _, rest = jax.lax.scan(advance, cache, None, length=LENGTH - 8)
    return jnp.concatenate([first[:, None], jnp.moveaxis(rest, 0, 1)], 1)


def tokens_of(model, rows=3, length=LENGTH, seed=0):
    return np.random.default_rng(seed).integers(0, model.vocab, (rows, length)).astype(np.int32)


def packed_batch(model, seed=0):
    """Returns rows of two documents each, segments 1 and 2, and two padded slots of segment 0 at the end of row 0."""
    batch = {'inputs': tokens_of(model, 2, seed=seed), 'targets': tokens_of(model, 2, seed=seed + 1),
             'segments': np.array([[1] * 4 + [2] * 6 + [0] * 2, [1] * 7 + [2] * 5], np.int32),
             'positions': np.array([[*range(4), *range(6), 0, 1], [*range(7), *range(5)]], np.int32)}
    return batch | {'weights': np.where(batch['segments'] > 0, [[1.0], [0.5]], 0).astype(np.float32)}


def unpacked(batch, segment):
    """Returns the documents of one segment of a packed batch, each alone at the start of a row."""
    out = {name: np.zeros_like(rows) for name, rows in batch.items()}
    for row in range(2):
        here = batch['segments'][row] == segment
        for name in batch:
            out[name][row, :here.sum()] = batch[name][row, here]
    out['positions'][:] = np.arange(LENGTH)
    return out


def test_every_switch_is_covered():
    hints = typing.get_type_hints(Decoder)
    for name, hint in hints.items():
        if name in ('dtype', 'remat', 'kernel', 'quantized'):
            continue
        seen = {getattr(model, name) for model in DECODERS.values()}
        wanted = {bool: {True, False}}.get(hint, set(typing.get_args(hint)) if 'Literal' in str(hint) else set())
        assert wanted <= seen, name
    assert set(schemes.Position.__subclasses__()) == {type(model.position) for model in DECODERS.values()}


@every
def test_logits_are_the_oracles(model):
    params, tokens = parameters(model), tokens_of(model)
    expected = oracle.Decoder(model, oracle.double(params)).logits(tokens)
    assert expected.std() > 0.1
    np.testing.assert_allclose(forward(model, params, tokens), expected, atol=1e-4)


@every
def test_loss_and_gradient_are_the_oracles(model):
    """Compares every parameter's gradient along a random direction with central differences in float64."""
    params, batch = parameters(model), packed_batch(model)
    loss, gradient = slope(model, params, batch)
    exact = oracle.double(params)
    np.testing.assert_allclose(loss, oracle.Decoder(model, exact).loss(batch), rtol=1e-5)
    rng, step = np.random.default_rng(3), 1e-6
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        holder = exact
        for entry in path[:-1]:
            holder = holder[entry.key]
        name, value = path[-1].key, holder[path[-1].key]
        direction, losses = rng.standard_normal(value.shape), []
        for sign in (1, -1):
            holder[name] = value + sign * step * direction
            losses.append(oracle.Decoder(model, exact).loss(batch))
        holder[name] = value
        expected = (losses[0] - losses[1]) / (2 * step)
        size = float(jnp.linalg.norm(leaf))
        assert abs(np.vdot(leaf, direction) - expected) < 2e-4 * size + 1e-6, jax.tree_util.keystr(path)


@every
def test_future_tokens_do_not_matter(model):
    params, tokens = parameters(model), tokens_of(model)
    changed = tokens.copy()
    changed[:, 5] = (changed[:, 5] + 1) % model.vocab
    before, after = forward(model, params, tokens), forward(model, params, changed)
    np.testing.assert_array_equal(before[:, :5], after[:, :5])
    assert np.abs(before[:, 5] - after[:, 5]).max() > 1e-3


@every
def test_cached_decode_is_the_full_forward(model):
    params, tokens, lengths = parameters(model), tokens_of(model), np.array([3, 8, 5], np.int32)
    full = forward(model, params, tokens)
    some = continued(model, params, tokens, lengths)
    for row, length in enumerate(lengths):
        np.testing.assert_allclose(some[row], full[row, length - 1:length - 1 + some.shape[1]], atol=1e-4)


@every
def test_packed_is_padded(model):
    params, batch = parameters(model), packed_batch(model)
    whole, parts = slope(model, params, batch), [slope(model, params, unpacked(batch, segment)) for segment in (1, 2)]
    shares = [np.sum(batch['weights'] * (batch['segments'] == segment)) for segment in (1, 2)]
    mixed = jax.tree.map(lambda *each: np.average(each, axis=0, weights=shares), *parts)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), whole, mixed)


@pytest.mark.parametrize('changes', [{'unroll': 2}, {'remat': 'dots'}, {'remat': 'full'}, {'remat': 'offload'}],
                         ids=['loop', 'dots', 'full', 'offload'])
def test_scan_is_a_loop_and_remat_changes_nothing(changes):
    model = small(windows=(3, 0), norm_place='both', dropout=0.1)
    params, batch, key = parameters(model), packed_batch(model), jax.random.key(4)
    changed = slope(dataclasses.replace(model, **changes), params, batch, key)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), slope(model, params, batch, key), changed)


def test_where_all_is_recomputed_hidden_units_are_never_all_in_memory():
    model = small(activation='swiglu', bias='all', ff=96, remat='full')
    params, batch = parameters(model), packed_batch(model)
    whole = dataclasses.replace(model, remat='none')
    assert model.ff > model.width
    for each, seen in ((model, False), (whole, True)):
        traced = jax.make_jaxpr(jax.grad(lambda params, each=each: each.loss(params, batch)[0]))(params)
        assert (f'[{len(batch["inputs"])},{LENGTH},{model.ff}]' in str(traced)) == seen
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), slope(model, params, batch),
                 slope(whole, params, batch))


def test_a_token_reaches_one_window_further_with_each_layer():
    model = small(windows=(3,))
    params, tokens = parameters(model), tokens_of(model)
    changed = tokens.copy()
    changed[:, 2] = (changed[:, 2] + 1) % model.vocab
    moved = np.abs(forward(model, params, tokens) - forward(model, params, changed)).max((0, 2)) > 0
    assert moved.tolist() == [2 <= t <= 2 + model.depth * (3 - 1) for t in range(LENGTH)]


def test_windows_repeat_over_the_depth():
    model = small(depth=3, windows=(2, 0))
    params, tokens = parameters(model), tokens_of(model)
    spelled = dataclasses.replace(model, windows=(2, 0, 2))
    np.testing.assert_array_equal(forward(model, params, tokens), forward(spelled, params, tokens))


def test_block_attention_is_one_block(monkeypatch):
    model = dataclasses.replace(DECODERS['gemma3'], unroll=2)
    params, tokens = parameters(model), tokens_of(model)
    whole = forward(model, params, tokens)
    program = str(jax.make_jaxpr(model.logits)(params, tokens))
    monkeypatch.setattr(blocked, 'BLOCK', 4)
    parts = architectures.jit(lambda p, t: model.logits(p, t))(params, tokens)
    np.testing.assert_allclose(parts, whole, atol=1e-5)
    assert str(jax.make_jaxpr(lambda p, t: model.logits(p, t))(params, tokens)) != program


@pytest.mark.parametrize('name', ['llama', 'gemma2', 'relative'])
def test_bfloat16_stays_near(name):
    model = DECODERS[name]
    params, tokens = parameters(model), tokens_of(model)
    exact, near = forward(model, params, tokens), forward(dataclasses.replace(model, dtype='bfloat16'), params, tokens)
    assert near.dtype == jnp.float32
    assert 1e-4 < np.abs(near - exact).max() / np.std(exact) < 0.2


def test_parameters_are_float32_and_drawn_from_the_key():
    model = small(dtype='bfloat16')
    init = architectures.jit(model.init)
    one, same, other = (init(jax.random.key(seed)) for seed in (0, 0, 1))
    assert {leaf.dtype for leaf in jax.tree.leaves(one)} == {jnp.dtype('float32')}
    jax.tree.map(np.testing.assert_array_equal, one, same)
    assert not np.array_equal(one['tokens'], other['tokens'])
    kernels = one['blocks']['mlp']['up']
    assert not np.array_equal(kernels[0], kernels[1])
    np.testing.assert_allclose(np.std(kernels), 0.02, rtol=0.1)
    np.testing.assert_allclose(np.std(one['blocks']['mlp']['down']), 0.02 / 2, rtol=0.1)


@every
def test_axes_name_every_dimension(model):
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    jax.tree.map(lambda leaf, names: None if len(leaf.shape) == len(names) else pytest.fail(f'{leaf.shape} {names}'),
                 shapes, model.axes())


def test_dropout_comes_from_the_key_alone():
    model = small(windows=(3, 0), norm_place='both', dropout=0.1)
    params, batch = parameters(model), packed_batch(model)
    loss = architectures.jit(lambda model, key: model.loss(params, batch, key)[0], static_argnums=0)
    calm = loss(dataclasses.replace(model, dropout=0.0), None)
    assert loss(model, None) == calm
    one, same, other = (loss(model, jax.random.key(seed)) for seed in (4, 4, 5))
    assert one == same
    assert len({float(one), float(other), float(calm)}) == 3


@pytest.mark.parametrize('quantized', ['none', 'int8', 'fp8'])
def test_it_overfits_twenty_tokens(quantized):
    if quantized != 'none':
        pytest.importorskip('qwix')
    model = small(vocab=20, dropout=0.0, quantized=quantized)
    tokens = np.random.default_rng(0).permutation(20)[None].astype(np.int32)
    batch, tx = {'inputs': tokens[:, :-1], 'targets': tokens[:, 1:]}, optax.adam(1e-2)

    def step(state, _):
        params, moments = state
        loss, gradient = jax.value_and_grad(lambda p: model.loss(p, batch)[0])(params)
        updates, moments = tx.update(gradient, moments)
        return (optax.apply_updates(params, updates), moments), loss
    params = parameters(model)
    losses = architectures.jit(lambda state: jax.lax.scan(step, state, None, length=60)[1])((params, tx.init(params)))
    assert losses[0] > 2
    assert losses[-1] < 0.05


@pytest.mark.parametrize('vocab, padded', [(1, 128), (50, 128), (128, 128), (129, 256)])
def test_the_vocabulary_is_padded_to_whole_lanes(vocab, padded):
    shapes = jax.eval_shape(small(vocab=vocab, tied=False).init, jax.random.key(0))
    assert shapes['tokens'].shape == (padded, 16)
    assert shapes['output'].shape == (16, padded)


@pytest.mark.parametrize('name', ['gpt2', 'llama'])
def test_padding_of_the_vocabulary_does_not_matter(name):
    model = DECODERS[name]
    params, tokens, batch = parameters(model), tokens_of(model), packed_batch(model)
    loss, gradient = slope(model, params, batch)
    changed = {**params, 'tokens': params['tokens'].copy()}
    changed['tokens'][model.vocab:] += 100
    if not model.tied:
        changed['output'] = params['output'].copy()
        changed['output'][:, model.vocab:] -= 100
    logits = forward(model, changed, tokens)
    assert logits.shape[-1] == model.vocab
    np.testing.assert_array_equal(logits, forward(model, params, tokens))
    assert slope(model, changed, batch)[0] == loss
    assert not np.any(gradient['tokens'][model.vocab:])
    assert model.tied or not np.any(gradient['output'][:, model.vocab:])


def test_the_loss_metric_leaves_the_z_loss_out():
    model = DECODERS['sinusoidal']
    params, batch = parameters(model), packed_batch(model)
    total, metrics = architectures.jit(model.loss)(params, batch)
    plain = slope(dataclasses.replace(model, z_loss=0.0), params, batch)[0]
    np.testing.assert_allclose(metrics['loss'], plain, rtol=1e-6)
    assert total > metrics['loss']
    np.testing.assert_allclose(metrics['weight'], batch['weights'].sum())


@pytest.mark.parametrize('name', ['sinusoidal', 'nope'])
def test_token_losses_are_the_datas_without_smoothing(name):
    model = DECODERS[name]
    params, batch = parameters(model), packed_batch(model)
    nll, log_z = architectures.jit(model.token_losses)(params, batch)
    logits = oracle.Decoder(model, oracle.double(params)).logits(batch['inputs'], batch['segments'], batch['positions'])
    expected = oracle.cross_entropy(logits, batch['targets'])
    np.testing.assert_allclose(nll, expected[0], atol=1e-4)
    np.testing.assert_allclose(log_z, expected[1], atol=1e-4)
