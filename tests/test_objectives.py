"""Objectives beside the next token: what they hide, what they score, and that it is drawn by rows from (seed, step)."""
import itertools
from dataclasses import replace

import architectures
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from architectures import BIDIRECTIONAL, parameters

from lm import cli, config, data, train
from lm.models import EncoderDecoder, Half, Layer
from lm.models.word_vectors import WordVectors
from lm.nn import Attention, Execution, NoPE
from lm.parallel import sharding
from lm.train.objectives.objective import validation_key

BERT = BIDIRECTIONAL['bert']
KEY = jax.random.key(3)


def text(rows=64, length=20):
    tokens = np.random.default_rng(0).integers(0, 49, (rows, length + 1)).astype(np.int32)
    return {'inputs': tokens[:, :-1], 'targets': tokens[:, 1:]}


def test_masked_tokens_are_hidden_replaced_and_kept_in_their_shares():
    batch = text(400, 50)
    out = train.MaskedLM(rate=0.3, replaced=0.2, kept=0.1).prepare(BERT, batch, KEY)
    chosen, changed = out['weights'] > 0, out['inputs'] != batch['targets']
    assert not (changed & ~chosen).any() and (out['targets'] == batch['targets']).all()
    np.testing.assert_allclose(chosen.mean(), 0.3, atol=0.01)
    np.testing.assert_allclose((out['inputs'] == 49)[chosen].mean(), 0.7 + 0.2 / 50, atol=0.02)
    np.testing.assert_allclose((~changed)[chosen].mean(), 0.1 + 0.2 / 50, atol=0.02)
    others = np.asarray(out['inputs'])[np.asarray(chosen & changed & (out['inputs'] != 49))]
    assert others.min() == 0 and others.max() == 48


def test_padding_is_never_scored():
    weights = np.tile(np.arange(20) < 12, (64, 1)).astype(np.float32)
    out = train.MaskedLM(rate=1.0).prepare(BERT, {**text(), 'weights': weights}, KEY)
    np.testing.assert_array_equal(out['weights'], weights)


def test_noise_is_drawn_by_the_number_of_a_row():
    mesh = sharding.make_mesh({'data': 8})
    objective, batch = train.MaskedLM(), text()
    whole = objective.prepare(BERT, batch, KEY)
    with jax.set_mesh(mesh):
        split = jax.jit(lambda batch: objective.prepare(BERT, batch, KEY))(sharding.put(batch, mesh))
    jax.tree.map(np.testing.assert_array_equal, whole, split)
    first = objective.prepare(BERT, {name: rows[:5] for name, rows in batch.items()}, KEY)
    jax.tree.map(lambda part, rows: np.testing.assert_array_equal(part, rows[:5]), first, whole)
    assert (np.asarray(whole['inputs'][0] == 49) != np.asarray(whole['inputs'][1] == 49)).any()


def test_the_loss_of_masked_tokens_is_that_of_the_formula():
    batch, params = text(4), parameters(BERT)
    objective = train.MaskedLM(rate=0.5)
    total, metrics = architectures.jit(lambda batch: objective.loss(BERT, params, batch))(batch)
    seen = objective.prepare(BERT, batch, jax.random.key(0))
    logits = np.asarray(architectures.jit(BERT.logits)(params, seen['inputs']), np.float64)
    nll = np.log(np.exp(logits).sum(-1)) - np.take_along_axis(logits, batch['targets'][..., None], -1)[..., 0]
    np.testing.assert_allclose(total, np.average(nll, weights=seen['weights']), rtol=1e-5)
    assert metrics['weight'] == seen['weights'].sum()
    sums = architectures.jit(lambda batch: objective.sums(BERT, 1, params, batch, jax.random.key(0)))(
        {**batch, 'weights': jnp.ones((4, 20)), 'source': jnp.zeros(4, jnp.int32)})
    np.testing.assert_allclose(sums, [[(nll * seen['weights']).sum(), seen['weights'].sum()]], rtol=1e-5)


def test_a_mask_that_is_a_token_of_the_text_is_refused(tmp_path, capsys):
    file = tmp_path / 'masked.py'
    file.write_text('''
import itertools
from dataclasses import replace
from experiments import tiny
from lm import train
from lm.models import Decoder, Layer
from lm.nn import Attention

def config():
    model = Decoder(vocab=258, depth=1, width=32, layer=Layer(Attention(2, causal=False)))
    return replace(tiny.config(), model=model, objective=train.MaskedLM(), steps=12)
''')
    words = ['train', str(file), f'--cache={tmp_path}/cache', 'data.batch=8', 'data.context=32']
    assert cli.main([*words, f'--workdir={tmp_path}/refused']) == 2
    assert 'MaskedLM keeps token 257 for itself, which is one of the text; try' in capsys.readouterr().err
    assert cli.main([*words, f'--workdir={tmp_path}/run', 'model.vocab=259',
                     "data.tokenizer=Controls(Bytes(), ('<0>',))"]) == 0
    out = capsys.readouterr().out
    assert 'validation loss' in out and 'bits_per_byte' not in out
    assert cli.main(['eval', f'{tmp_path}/run', '--stride=16', f'--cache={tmp_path}/cache']) == 2
    assert '--stride=16 leaves tokens unscored that MaskedLM would take for padding' in capsys.readouterr().err


def test_each_batch_of_a_validation_hides_other_tokens():
    first, second = (train.MaskedLM().prepare(BERT, text(8), validation_key(number))['weights'] for number in (0, 1))
    assert (np.asarray(first) != np.asarray(second)).any()


@pytest.mark.parametrize('make, words', [
    (lambda: train.MaskedLM(replaced=0.7, kept=0.5), 'more than all chosen tokens'),
    (lambda: train.MaskedLM(rate=1.5), 'rate=1.5'),
    (lambda: train.MaskedLM().check(architectures.DECODERS['gpt2']), 'does not see the tokens behind'),
    (lambda: train.Contrastive().check(WordVectors(10)), 'WordVectors has no vector for a text'),
    (lambda: data.Controls(data.Bytes(), ('<a>', '<a>')), 'a name twice')])
def test_what_cannot_be_is_refused(make, words):
    with pytest.raises(config.Error, match=words):
        make()


PROMPTED = replace(architectures.DECODERS['llama'], prompt='bidirectional', execution=Execution())


def packed():
    """Returns two rows of two documents each, of 12 and 8 tokens and of 5 and 9, with padding behind the last."""
    segments = np.array([[1] * 12 + [2] * 8, [1] * 5 + [2] * 9 + [0] * 6], np.int32)
    positions = np.array([[*range(12), *range(8)], [*range(5), *range(9), *[0] * 6]], np.int32)
    return {**text(2), 'segments': segments, 'positions': positions, 'weights': (segments > 0).astype(np.float32)}


def test_a_prefix_sees_itself_and_the_rest_is_scored():
    batch = packed()
    out = jax.tree.map(np.asarray, train.PrefixLM().prepare(PROMPTED, batch, KEY))
    for row in range(2):
        for segment in (1, 2):
            own = batch['segments'][row] == segment
            prefix, scored = out['prefix'][row][own], out['weights'][row][own] > 0
            size = prefix.sum()
            assert 1 <= size < own.sum() and prefix[:size].all()
            assert (scored == (np.arange(own.sum()) >= size - 1)).all()
    assert not out['prefix'][1, 14:].any() and not out['weights'][1, 14:].any()


def test_tokens_see_later_ones_of_the_prefix_alone():
    batch, params = text(1), parameters(PROMPTED)
    prefix = (np.arange(20) < 8)[None]
    losses = architectures.jit(lambda batch: PROMPTED.token_losses(params, batch)[0])
    plain = np.asarray(losses({**batch, 'prefix': prefix}))

    def moved(at):
        changed = batch['inputs'].copy()
        changed[0, at] = (changed[0, at] + 1) % 49
        return np.abs(np.asarray(losses({**batch, 'inputs': changed, 'prefix': prefix})) - plain)[0]
    assert (moved(7) > 1e-5).all() and moved(8)[:8].max() == 0 and (moved(8)[8:] > 1e-5).all()


def test_a_prompt_is_read_as_a_prefix_and_gone_on_from():
    params, tokens = parameters(PROMPTED), text(2, 10)['inputs']
    lengths = np.array([6, 4], np.int32)
    logits, cache = PROMPTED.prefill(params, tokens, lengths, 16)
    step = architectures.jit(PROMPTED.decode)
    for row in range(2):
        one = tokens[row:row + 1]
        of = {'inputs': one, 'targets': one, 'prefix': (np.arange(10) < lengths[row])[None]}
        whole = np.asarray(PROMPTED.token_losses(params, of)[1])[0]
        np.testing.assert_allclose(jax.nn.logsumexp(logits[row]), whole[lengths[row] - 1], atol=1e-3)
    for at in range(3):
        logits, cache = step(params, tokens[np.arange(2), lengths + at], cache)
        whole = PROMPTED.token_losses(params, {'inputs': tokens, 'targets': tokens,
                                               'prefix': np.arange(10) < lengths[:, None]})[1]
        np.testing.assert_allclose(jax.nn.logsumexp(logits, -1), whole[np.arange(2), lengths + at], atol=1e-3)


PAIRED = EncoderDecoder(50, 1, 16, Half(1, Layer(Attention(4, causal=False))),
                        Half(1, Layer(Attention(4), cross=Attention(4, causal=False, position=NoPE()))))


def test_an_encoder_decoder_reads_the_prefix_and_writes_the_rest():
    batch, params = packed(), parameters(PAIRED)
    out = jax.tree.map(np.asarray, train.PrefixLM().prepare(PAIRED, batch, KEY))
    losses = PAIRED.token_losses(params, out)[0]
    first = int(np.argmax(out['weights'][0] > 0))
    assert out['inputs'][0, first] == 1 and out['positions'][0, first] == 0
    assert (out['encoder_segments'][0, :12] == (np.arange(12) <= first)).all()
    alone = {'encoder_inputs': batch['inputs'][:1, :first + 1], 'targets': batch['targets'][:1, first:12],
             'inputs': np.concatenate([[[1]], batch['inputs'][:1, first + 1:12]], 1)}
    np.testing.assert_allclose(losses[:1, first:12], PAIRED.token_losses(params, alone)[0], atol=1e-4)


@pytest.mark.parametrize('rate, span, lost, spans', [(0.15, 3.0, 3, 1), (0.5, 2.0, 10, 5), (0.3, 1.0, 6, 6)])
def test_spans_and_what_is_left_make_the_text(rate, span, lost, spans):
    objective, batch = train.SpanCorruption(rate, span, sentinels=10), text(50)
    out = jax.tree.map(np.asarray, objective.prepare(PAIRED, batch, KEY))
    assert objective.sizes(20) == (lost, spans)
    assert out['encoder_inputs'].shape == (50, 20 - lost + spans) and out['targets'].shape == (50, lost + spans + 1)
    assert (out['inputs'][:, 0] == 1).all() and (out['inputs'][:, 1:] == out['targets'][:, :-1]).all()
    batch = {**batch, 'targets': batch['targets'] % 40}  # apart from the sentinels 40 to 49
    out = jax.tree.map(np.asarray, objective.prepare(PAIRED, batch, KEY))
    for source, target, tokens in zip(out['encoder_inputs'], out['targets'], batch['targets'], strict=True):
        pieces = np.split(target, np.flatnonzero(target >= 40))[1:]
        assert [piece[0] for piece in pieces] == [49 - i for i in range(spans + 1)] and pieces[-1].size == 1
        filled = [piece[1:] for piece in pieces]
        text_again = np.concatenate([filled[49 - token] if token >= 40 else [token] for token in source])
        np.testing.assert_array_equal(text_again, tokens)
    assert spans == 1 or len({tuple(row >= 40) for row in out['encoder_inputs']}) > 1


def test_a_decoder_reads_the_corrupted_text_as_its_prompt():
    objective, batch = train.SpanCorruption(0.5, 2.0, sentinels=10), text(3)
    joined = jax.tree.map(np.asarray, objective.prepare(PROMPTED, batch, KEY))
    pair = jax.tree.map(np.asarray, objective.prepare(PAIRED, batch, KEY))
    size = pair['encoder_inputs'].shape[1]
    np.testing.assert_array_equal(joined['inputs'][:, :size], pair['encoder_inputs'])
    np.testing.assert_array_equal(joined['targets'][:, size - 1:], pair['targets'])
    np.testing.assert_array_equal(joined['prefix'][0], np.arange(size + 10 + 5) < size)
    np.testing.assert_array_equal(joined['weights'][0], np.arange(size + 10 + 5) >= size - 1)


def test_infilling_puts_a_mask_for_each_span():
    objective = train.TextInfilling(rate=0.3, span=2.0)
    batch = {**text(300, 40), 'segments': np.ones((300, 40), np.int32)}
    out = jax.tree.map(np.asarray, objective.prepare(PAIRED, batch, KEY))
    gone, masks = [], []
    for source, segments, tokens in zip(out['encoder_inputs'], out['encoder_segments'], batch['targets'], strict=True):
        left = source[segments > 0]
        kept = left[left != 49]
        at = iter(tokens)
        assert all(token in at for token in kept)  # in their order
        gone.append(len(tokens) - len(kept))
        masks.append(np.sum(left == 49))
    np.testing.assert_allclose(np.mean(gone) / 40, 0.3, atol=0.03)
    assert 0.08 < np.mean(masks) / 40 < 0.15
    assert (out['inputs'][:, 0] == PAIRED.start).all()


def test_infilling_takes_each_document_of_a_packed_row_by_itself():
    batch = jax.tree.map(lambda x: np.repeat(x, 100, 0), packed())
    out = jax.tree.map(np.asarray, train.TextInfilling(rate=0.3, span=4.0).prepare(PAIRED, batch, KEY))
    for row in range(200):
        for segment in (1, 2):
            own = out['encoder_segments'][row] == segment
            source, tokens = out['encoder_inputs'][row][own], batch['targets'][row][batch['segments'][row] == segment]
            at = iter(tokens)
            assert all(token in at for token in source[source != 49])
            assert (49 in source) or len(source) == len(tokens)  # what is gone stands behind a mask of its own document
            np.testing.assert_array_equal(out['encoder_positions'][row][own], np.arange(len(source)))
    first = (batch['positions'] == 0) & (batch['segments'] > 0)
    assert (out['inputs'][first] == PAIRED.start).all() and (out['targets'] == batch['targets']).all()


@pytest.mark.parametrize('rate, span', [(0.3, 1.0), (0.3, 0.5), (0.9, 3.0)])
def test_infilling_leaves_room_for_all_that_is_kept(rate, span):
    batch = text(200, 40)
    ends = np.broadcast_to(np.arange(40) == 39, (200, 40))
    batch = {**batch, 'targets': np.where(ends, 48, batch['targets'] % 40), 'segments': np.ones((200, 40), np.int32)}
    out = jax.tree.map(np.asarray, train.TextInfilling(rate=rate, span=span).prepare(PAIRED, batch, KEY))
    source = [row[own > 0] for row, own in zip(out['encoder_inputs'], out['encoder_segments'], strict=True)]
    np.testing.assert_allclose(np.mean([48 in row for row in source]), 1 - rate, atol=0.1)  # the end is as likely kept
    np.testing.assert_allclose(np.mean([np.sum(row < 48) for row in source]) / 39, 1 - rate, atol=0.05)


def test_sentences_of_a_document_get_another_order_and_what_follows_them_stays():
    own, other = [1, 2, 9, 3, 9, 4, 5, 8, 6], [20, 9, 21, 22, 9, 23]
    tokens, segments = np.array([own + other]), np.array([[1] * len(own) + [2] * len(other)])
    batch = {'inputs': tokens, 'targets': tokens, 'segments': segments}
    objective = train.TextInfilling(rate=0.0, ends=(9, 8))
    out = {tuple(np.asarray(objective.prepare(PAIRED, batch, jax.random.key(seed))['encoder_inputs'])[0].tolist())
           for seed in range(60)}
    first = [[*a, *b, *c, 6] for a, b, c in itertools.permutations([[1, 2, 9], [3, 9], [4, 5, 8]])]
    second = [[20, 9, 21, 22, 9, 23], [21, 22, 9, 20, 9, 23]]
    assert out == {tuple(a + b) for a in first for b in second}


@pytest.mark.parametrize('objective', [train.MaskedLM(rate=0.5), train.MaskedDiffusion()])
def test_no_token_sees_padding(objective):
    batch = {**text(2), 'weights': np.tile(np.arange(20) < 12, (2, 1)).astype(np.float32)}
    other = {**batch, 'targets': np.where(batch['weights'] > 0, batch['targets'], 3)}
    params = parameters(BERT)
    loss = architectures.jit(lambda batch: objective.loss(BERT, params, batch, KEY)[0])
    assert loss(batch) == loss(other)


@pytest.mark.parametrize('objective, model, words', [
    (train.PrefixLM(), architectures.DECODERS['gpt2'], 'set model.prompt=bidirectional'),
    (train.SpanCorruption(), architectures.DECODERS['gpt2'], 'set model.prompt=bidirectional'),
    (train.TextInfilling(), architectures.DECODERS['gpt2'], 'try model=EncoderDecoder'),
    (train.MaskedDiffusion(), architectures.DECODERS['gpt2'], 'does not see the tokens behind')])
def test_an_objective_names_the_model_that_it_needs(objective, model, words):
    with pytest.raises(config.Error, match=words):
        objective.check(model)


def test_spans_that_do_not_fit_are_refused():
    with pytest.raises(config.Error, match='try objective.sentinels=7'):
        train.SpanCorruption(0.3, 1.0, sentinels=5).sizes(20)
    with pytest.raises(config.Error, match='leaves nothing to read'):
        train.SpanCorruption(1.0)
    with pytest.raises(config.Error, match='try data.packing=windows'):
        train.SpanCorruption().prepare(PAIRED, packed(), KEY)
    with pytest.raises(config.Error, match='give each a positive number'):
        train.Mixture((train.PrefixLM(),), (1.0, 2.0))
