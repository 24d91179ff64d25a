"""The laws of the decoder, over every component and every switch."""
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
from architectures import ALL, DECODERS, OBJECTIVES, parameters, small

from lm.models import Decoder, Embedding, Encoder, Head, Layer, Mean, MupBase, Residual, SandwichNorm, mup
from lm.models.encoder import FirstLayer
from lm.nn import MLP, AbsolutePosition, Activation, Attention, Execution, Norm, Position, Silu
from lm.nn.attention import blocked
from lm.parallel.pipeline import Pipeline
from lm.train import NextToken

LENGTH, PLAIN = 12, NextToken()
every = pytest.mark.parametrize('name', ALL)
causal = pytest.mark.parametrize('model', DECODERS.values(), ids=DECODERS)
WINDOWS = small(depth=4, embedding=Embedding(dropout=0.1), pattern=tuple(
    Layer(Attention(4, window=window), residual=SandwichNorm(), dropout=0.1) for window in (3, 0)))


@partial(architectures.jit, static_argnums=0)
def forward(model, params, tokens):
    return model.logits(params, tokens)


def loss_and_gradient(model, params, batch, objective=PLAIN, key=None):
    return jax.value_and_grad(lambda p: objective.loss(model, p, batch, key)[0])(params)


slope = architectures.jit(loss_and_gradient, static_argnums=(0, 3))


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
    return batch | {'weights': np.where(batch['segments'] > 0, [[1.0], [0.5]], 0).astype(np.float32),
                    'types': (batch['inputs'] % 3 // 2).astype(np.int32)}


def unpacked(batch, segment):
    """Returns the documents of one segment of a packed batch, each alone at the start of a row."""
    out = {name: np.zeros_like(rows) for name, rows in batch.items()}
    for row in range(2):
        here = batch['segments'][row] == segment
        for name in batch:
            out[name][row, :here.sum()] = batch[name][row, here]
    out['positions'][:] = np.arange(LENGTH)
    return out


def components(value):
    """Yields a dataclass and all dataclasses inside it."""
    if dataclasses.is_dataclass(value):
        yield value
        for field in dataclasses.fields(value):
            yield from components(getattr(value, field.name))
    if isinstance(value, tuple):
        for item in value:
            yield from components(item)


USED = [component for model in ALL.values() for component in components(model)]


@pytest.mark.parametrize('models', [ALL, architectures.BIDIRECTIONAL], ids=['all', 'encoders'])
@pytest.mark.parametrize('base', [Position, AbsolutePosition, Norm, Activation])
def test_every_kind_of_component_is_covered(base, models):
    kinds = {kind for kind in base.__subclasses__() if kind.__module__.startswith('lm.nn')}
    assert kinds and kinds <= {type(part) for model in models.values() for part in components(model)}


def test_every_residual_is_covered():
    kinds = {kind for kind in Residual.__subclasses__() if kind.__module__.startswith('lm.')}
    assert kinds and kinds <= {type(component) for component in USED}


@pytest.mark.parametrize('kind', sorted({type(c) for c in USED} - {
    Decoder, Encoder, FirstLayer, Mean, Execution, MupBase, Pipeline}, key=str), ids=lambda kind: kind.__name__)
def test_every_switch_is_covered(kind):
    """Every choice and truth value of every field occurs, and of a number or a component one beside its default."""
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        if field.name in ('dropout', 'cross'):  # neither is for the oracle
            continue
        seen = [getattr(component, field.name) for component in USED if type(component) is kind]
        choices = {True, False} if hints[field.name] is bool else set(typing.get_args(hints[field.name]))
        if hints[field.name] is bool or 'Literal' in str(hints[field.name]):
            assert choices == set(seen), field.name
        else:
            assert len(set(seen)) > 1 or field.default not in seen, field.name


@every
def test_logits_are_the_oracles(name):
    model = ALL[name]
    params, tokens = parameters(model), tokens_of(model)
    expected = oracle.Decoder(model, oracle.double(params)).logits(tokens)
    assert expected.std() > 0.1
    np.testing.assert_allclose(forward(model, params, tokens), expected, atol=1e-4)


@every
def test_loss_and_gradient_are_the_oracles(name):
    """Compares every parameter's gradient along a random direction with central differences in float64."""
    model, objective = ALL[name], OBJECTIVES[name]
    params, batch = parameters(model), packed_batch(model)
    loss, gradient = slope(model, params, batch, objective)
    exact = oracle.double(params)

    def expected_loss():
        return oracle.Decoder(model, exact).loss(batch, objective.z_loss, objective.smoothing)
    np.testing.assert_allclose(loss, expected_loss(), rtol=1e-5)
    rng, step = np.random.default_rng(3), 1e-6
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        holder = exact
        for entry in path[:-1]:
            holder = holder[entry.key]
        last, value = path[-1].key, holder[path[-1].key]
        direction, losses = rng.standard_normal(value.shape), []
        for sign in (1, -1):
            holder[last] = value + sign * step * direction
            losses.append(expected_loss())
        holder[last] = value
        expected = (losses[0] - losses[1]) / (2 * step)
        size = float(jnp.linalg.norm(leaf))
        assert abs(np.vdot(leaf, direction) - expected) < 2e-4 * size + 1e-6, jax.tree_util.keystr(path)


@causal
def test_future_tokens_do_not_matter(model):
    params, tokens = parameters(model), tokens_of(model)
    changed = tokens.copy()
    changed[:, 5] = (changed[:, 5] + 1) % model.vocab
    before, after = forward(model, params, tokens), forward(model, params, changed)
    np.testing.assert_array_equal(before[:, :5], after[:, :5])
    assert np.abs(before[:, 5] - after[:, 5]).max() > 1e-3


@pytest.mark.parametrize('model', architectures.BIDIRECTIONAL.values(), ids=architectures.BIDIRECTIONAL)
def test_future_tokens_matter_where_attention_is_not_causal(model):
    params, tokens = parameters(model), tokens_of(model)
    changed = tokens.copy()
    changed[:, 5] = (changed[:, 5] + 1) % model.vocab
    before, after = forward(model, params, tokens), forward(model, params, changed)
    assert np.abs(before[:, 4] - after[:, 4]).max() > 1e-3


@causal
def test_cached_decode_is_the_full_forward(model):
    params, tokens, lengths = parameters(model), tokens_of(model), np.array([3, 8, 5], np.int32)
    full = forward(model, params, tokens)
    some = continued(model, params, tokens, lengths)
    for row, length in enumerate(lengths):
        np.testing.assert_allclose(some[row], full[row, length - 1:length - 1 + some.shape[1]], atol=1e-4)


@every
def test_packed_is_padded(name):
    model = ALL[name]
    params, batch = parameters(model), packed_batch(model)
    whole, *parts = [slope(model, params, rows, OBJECTIVES[name])
                     for rows in (batch, unpacked(batch, 1), unpacked(batch, 2))]
    shares = [np.sum(batch['weights'] * (batch['segments'] == segment)) for segment in (1, 2)]
    mixed = jax.tree.map(lambda *each: np.average(each, axis=0, weights=shares), *parts)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), whole, mixed)


@pytest.mark.parametrize('changes', [{'unroll': 1}, {'remat': 'dots'}, {'remat': 'full'}, {'remat': 'offload'}],
                         ids=['scan', 'dots', 'full', 'offload'])
def test_scan_is_a_loop_and_remat_changes_nothing(changes):
    params, batch, key = parameters(WINDOWS), packed_batch(WINDOWS), jax.random.key(4)
    whole = dataclasses.replace(WINDOWS, execution=Execution(unroll=2))
    changed = dataclasses.replace(WINDOWS, execution=Execution(**changes))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6),
                 *(slope(model, params, batch, PLAIN, key) for model in (whole, changed)))


def test_under_full_remat_hidden_units_are_never_all_in_memory():
    mlp = MLP(96, Silu(), gated=True, bias=True)
    model = small(layer=Layer(Attention(4, bias='all'), mlp), execution=Execution(remat='full'))
    params, batch = parameters(model), packed_batch(model)
    whole = dataclasses.replace(model, execution=Execution())
    for variant, stored in ((model, False), (whole, True)):
        traced = jax.make_jaxpr(partial(loss_and_gradient, variant))(params, batch)
        assert (f'[{len(batch["inputs"])},{LENGTH},{mlp.ff}]' in str(traced)) == stored
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), slope(model, params, batch),
                 slope(whole, params, batch))


@pytest.mark.parametrize('is_causal', [True, False], ids=['causal', 'both'])
def test_a_token_reaches_one_window_further_with_each_layer(is_causal):
    model = small(layer=Layer(Attention(4, window=3, causal=is_causal)))
    params, tokens = parameters(model), tokens_of(model)
    changed = tokens.copy()
    changed[:, 5] = (changed[:, 5] + 1) % model.vocab
    differs = np.abs(forward(model, params, tokens) - forward(model, params, changed)).max((0, 2)) > 0
    reach = model.depth * (3 - 1)
    assert differs.tolist() == [(5 if is_causal else 5 - reach) <= t <= 5 + reach for t in range(LENGTH)]


def test_patterns_repeat_over_the_depth():
    near, far = Layer(Attention(4, window=2)), Layer(Attention(4))
    model = small(depth=3, pattern=(near, far))
    params, tokens = parameters(model), tokens_of(model)
    spelled = dataclasses.replace(model, pattern=(near, far, near))
    np.testing.assert_array_equal(forward(model, params, tokens), forward(spelled, params, tokens))
    assert (spelled.stack._repetition(), model.stack._repetition()) == ((0, 2), (0, 2))
    other = dataclasses.replace(model, pattern=(near, far, far))
    assert not np.array_equal(forward(model, params, tokens), forward(other, params, tokens))


@pytest.mark.long
def test_what_a_pattern_repeats_behind_other_layers_is_scanned():
    model = dataclasses.replace(architectures.BIDIRECTIONAL['modern'], depth=7)
    layers = model.pattern
    model = dataclasses.replace(model, pattern=(*layers, *layers[1:]))
    assert model.stack._repetition() == (1, 3)
    rolled = dataclasses.replace(model, execution=Execution(unroll=1))
    params, batch = parameters(model), packed_batch(model)
    one, many = (slope(variant, params, batch) for variant in (rolled, model))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), one, many)
    assert 'length=2' in str(jax.make_jaxpr(rolled.logits)(params, batch['inputs']))
    expected = oracle.Decoder(model, oracle.double(params)).logits(batch['inputs'])
    np.testing.assert_allclose(forward(rolled, params, batch['inputs']), expected, atol=1e-4)


def test_block_attention_is_one_block(monkeypatch):
    model = dataclasses.replace(DECODERS['gemma3'], execution=Execution(unroll=2))
    params, tokens = parameters(model), tokens_of(model)
    whole = forward(model, params, tokens)
    program = str(jax.make_jaxpr(model.logits)(params, tokens))
    monkeypatch.setattr(blocked, 'BLOCK', 4)
    parts = architectures.jit(lambda p, t: model.logits(p, t))(params, tokens)
    np.testing.assert_allclose(parts, whole, atol=1e-5)
    assert str(jax.make_jaxpr(lambda p, t: model.logits(p, t))(params, tokens)) != program


@pytest.mark.parametrize('name', ['llama', 'gemma2', 'relative', 'vaswani'])
def test_bfloat16_stays_near(name):
    model = DECODERS[name]
    params, tokens = parameters(model), tokens_of(model)
    low = dataclasses.replace(model, execution=dataclasses.replace(model.execution, dtype='bfloat16'))
    exact, near = forward(model, params, tokens), forward(low, params, tokens)
    assert near.dtype == jnp.float32
    assert 1e-4 < np.abs(near - exact).max() / np.std(exact) < 0.2


def test_parameters_are_float32_and_drawn_from_the_key():
    model = small(execution=Execution(dtype='bfloat16'))
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
def test_axes_name_every_dimension(name):
    model = ALL[name]
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    jax.tree.map(lambda leaf, names: None if len(leaf.shape) == len(names) else pytest.fail(f'{leaf.shape} {names}'),
                 shapes, model.axes())


@pytest.mark.parametrize('model', [WINDOWS, dataclasses.replace(WINDOWS, embedding=Embedding()),
                                   small(embedding=Embedding(dropout=0.1))], ids=['both', 'layers', 'embedding'])
def test_dropout_comes_from_the_key_alone(model):
    params, batch = parameters(model), packed_batch(model)
    loss = architectures.jit(lambda model, key: PLAIN.loss(model, params, batch, key)[0], static_argnums=0)
    calm = loss(mup.without_dropout(model), None)
    assert loss(model, None) == loss(mup.without_dropout(model), jax.random.key(4)) == calm
    one, same, other = (loss(model, jax.random.key(seed)) for seed in (4, 4, 5))
    assert one == same
    assert len({float(one), float(other), float(calm)}) == 3


@pytest.mark.parametrize('precision', ['none', 'int8', 'fp8'])
def test_it_overfits_twenty_tokens(precision):
    if precision != 'none':
        pytest.importorskip('qwix')
    model = small(vocab=20, execution=Execution(precision=precision))
    tokens = np.random.default_rng(0).permutation(20)[None].astype(np.int32)
    batch, tx = {'inputs': tokens[:, :-1], 'targets': tokens[:, 1:]}, optax.adam(1e-2)

    def step(state, _):
        params, moments = state
        loss, gradient = loss_and_gradient(model, params, batch)
        updates, moments = tx.update(gradient, moments)
        return (optax.apply_updates(params, updates), moments), loss
    params = parameters(model)
    losses = architectures.jit(lambda state: jax.lax.scan(step, state, None, length=60)[1])((params, tx.init(params)))
    assert losses[0] > 2
    assert losses[-1] < 0.05


@pytest.mark.parametrize('vocab, padded', [(1, 128), (50, 128), (128, 128), (129, 256)])
def test_the_vocabulary_is_padded_to_whole_lanes(vocab, padded):
    shapes = jax.eval_shape(small(vocab=vocab, head=Head(tied=False)).init, jax.random.key(0))
    assert shapes['tokens'].shape == (padded, 16)
    assert shapes['output'].shape == (16, padded)


@pytest.mark.parametrize('name', ['gpt2', 'llama'])
def test_padding_of_the_vocabulary_does_not_matter(name):
    model = DECODERS[name]
    params, tokens, batch = parameters(model), tokens_of(model), packed_batch(model)
    loss, gradient = slope(model, params, batch)
    changed = {**params, 'tokens': params['tokens'].copy()}
    changed['tokens'][model.vocab:] += 100
    if not model.head.tied:
        changed['output'] = params['output'].copy()
        changed['output'][:, model.vocab:] -= 100
    logits = forward(model, changed, tokens)
    assert logits.shape[-1] == model.vocab
    np.testing.assert_array_equal(logits, forward(model, params, tokens))
    assert slope(model, changed, batch)[0] == loss
    assert not np.any(gradient['tokens'][model.vocab:])
    assert model.head.tied or not np.any(gradient['output'][:, model.vocab:])


def test_the_loss_metric_leaves_the_z_loss_out():
    model = DECODERS['vaswani']
    params, batch = parameters(model), packed_batch(model)
    total, metrics = architectures.jit(partial(NextToken(z_loss=0.1).loss, model))(params, batch)
    np.testing.assert_allclose(metrics['loss'], slope(model, params, batch)[0], rtol=1e-6)
    assert total > metrics['loss']
    np.testing.assert_allclose(metrics['weight'], batch['weights'].sum())


@pytest.mark.parametrize('smoothing', [0.0, 0.2])
@pytest.mark.parametrize('name', ['vaswani', 'llama'])
def test_token_losses_are_the_oracles(name, smoothing):
    model = DECODERS[name]
    params, batch = parameters(model), packed_batch(model)
    nll, log_z, auxiliary = architectures.jit(partial(model.token_losses, smoothing=smoothing))(params, batch)
    logits = oracle.Decoder(model, oracle.double(params)).logits(batch['inputs'], batch['segments'], batch['positions'])
    expected = oracle.cross_entropy(logits, batch['targets'], smoothing)
    np.testing.assert_allclose(nll, expected[0], atol=1e-4)
    np.testing.assert_allclose(log_z, expected[1], atol=1e-4)
    assert auxiliary == (0.0, {})
