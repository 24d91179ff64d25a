"""Objectives of encoders beside MaskedLM: whole words, pairs of spans, replaced tokens, contrasted texts."""
import dataclasses
from functools import partial

import architectures
import encoders
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from architectures import BIDIRECTIONAL, parameters

from lm import config, data, train
from lm.models import Detector, Electra, First, TypedEmbedding
from lm.nn import Learned
from lm.parallel import sharding

BERT = dataclasses.replace(BIDIRECTIONAL['bert'], depth=1, pooling=First(), classes=2,
                           layer=dataclasses.replace(BIDIRECTIONAL['bert'].layer, dropout=0.1))
SMALL = dataclasses.replace(BERT, width=8, layer=dataclasses.replace(
    BERT.layer, attention=dataclasses.replace(BERT.layer.attention, heads=2)))
ELECTRA = Electra(SMALL, dataclasses.replace(BERT, head=Detector()))
KEY = jax.random.key(3)
CASES = {'next': (train.NextSentence(), BERT), 'order': (train.SentenceOrder(), BERT),
         'replaced': (train.ReplacedToken(), ELECTRA), 'contrast': (train.Contrastive(0.5), BERT)}
every = pytest.mark.parametrize('name', CASES)


def text(rows=16, length=20, most=40):
    tokens = np.random.default_rng(0).integers(0, most, (rows, length + 1)).astype(np.int32)
    return {'inputs': tokens[:, :-1], 'targets': tokens[:, 1:]}


def loss(name):
    objective, model = CASES[name]
    return lambda params, batch, key: objective.loss(model, params, batch, key)


# Words.

def test_the_tokens_of_a_word_are_chosen_together():
    batch = text(200, 30)
    begins = np.random.default_rng(1).random((200, 30)) < 0.4
    out = train.MaskedLM(rate=0.3, whole_words=True).prepare(BERT, {**batch, 'begins': begins}, KEY)
    words = np.maximum(np.cumsum(begins, -1) - 1, 0) + 100 * np.arange(200)[:, None]
    chosen = np.asarray(out['weights'] > 0)
    for word in np.unique(words):
        assert np.ptp(chosen[words == word].astype(int)) == 0
    np.testing.assert_allclose(chosen.mean(), 0.3, atol=0.03)
    with pytest.raises(config.Error, match='try data.words=true'):
        train.MaskedLM(whole_words=True).prepare(BERT, batch, KEY)


@pytest.mark.parametrize('make, written, words', [
    (encoders.COMPLETE['bytes'], 'ab  cd, e', 'ab| | cd|,| e'), (encoders.COMPLETE['bpe'], 'the cat, sat', ''),
    (encoders.COMPLETE['json'], 'the cat, sat', ''), (encoders.COMPLETE['controls'], 'x y', 'x| y')],
    ids=['bytes', 'bpe', 'json', 'controls'])
def test_words_begin_with_a_space_or_a_mark(make, written, words):
    encoder = make()
    ids = encoder.encode(written)
    begins = encoder.begins[ids].copy()
    begins[0] = True
    parts = [encoder.decode(part) for part in np.split(ids, np.flatnonzero(begins)[1:])]
    assert [part.strip() for part in parts] == [part.strip() for part in (words or 'the| cat|,| sat').split('|')]
    assert all(encoder.begins[id] for id in encoder.controls)


def test_batches_say_where_words_begin(tmp_path):
    corpus = data.Corpus(data.Synthetic(40, 200), None, data.Bytes(), 24, 4, words=True)
    batch = corpus.open(tmp_path).batch_at(0)
    spaces = np.isin(batch['targets'], [32, 10, *b'.,;:!?-\'"()', 257])
    assert batch['begins'].dtype == bool and 0 < spaces.mean() < 0.5
    np.testing.assert_array_equal(batch['begins'], spaces)
    example = corpus.example()
    assert {name: (x.shape, x.dtype) for name, x in batch.items()} == {
        name: (x.shape, x.dtype) for name, x in example.items()}


# Pairs.

@pytest.mark.parametrize('objective', [train.NextSentence(rate=0.0), train.SentenceOrder(rate=0.0)],
                         ids=['next', 'order'])
def test_a_pair_is_two_spans_between_controls(objective):
    batch = text(64)
    out = jax.tree.map(np.asarray, objective.prepare(BERT, batch, KEY))
    source = batch['targets'][:, :17]
    cuts = set()
    for row in range(64):
        tokens, types, label = out['targets'][row], out['types'][row], out['label'][row]
        first, last = np.flatnonzero(tokens == 47)
        assert tokens[0] == 48 and last == 19 and types.tolist() == [0] * (first + 1) + [1] * (19 - first)
        a, b = tokens[1:first], tokens[first + 1:last]
        cuts.add(len(a))
        if isinstance(objective, train.NextSentence):
            other = source[(row + 32) % 64] if label else source[row]
            assert a.tolist() + b.tolist() == [*source[row][:len(a)], *other[len(a):]]
        else:
            assert (b.tolist() + a.tolist() if label else a.tolist() + b.tolist()) == source[row].tolist()
    assert 20 < out['label'].sum() < 44 and min(cuts) >= 4 and max(cuts) <= 13
    hidden = dataclasses.replace(objective, rate=1.0).prepare(BERT, batch, KEY)
    np.testing.assert_array_equal(hidden['weights'] == 0, np.isin(out['targets'], [47, 48]))
    np.testing.assert_array_equal(np.asarray(hidden['inputs'])[np.isin(out['targets'], [47, 48])],
                                  out['targets'][np.isin(out['targets'], [47, 48])])


def test_the_loss_of_a_pair_is_that_of_the_formula():
    objective, params, batch = train.NextSentence(rate=0.4, weight=0.5), parameters(BERT), text(8)
    total, metrics = architectures.jit(lambda batch: objective.loss(BERT, params, batch))(batch)
    pairs = objective.prepare(BERT, batch, jax.random.key(0))
    states = BERT.states(params, pairs)
    logits = np.asarray(BERT.class_logits(params, states), np.float64)
    label = np.log(np.exp(logits).sum(-1)) - logits[np.arange(8), pairs['label']]
    nll, weights = BERT.token_losses(params, pairs)[0], np.asarray(pairs['weights'])
    np.testing.assert_allclose(total, np.average(nll + 0.5 * label[:, None], weights=weights), rtol=1e-5)
    np.testing.assert_allclose(metrics['label_loss'], np.average(label, weights=weights.sum(1)), rtol=1e-5)
    assert metrics['weight'] == weights.sum()


# Replaced tokens.

def test_the_loss_of_replaced_tokens_is_that_of_the_formula():
    """Under a generator that always writes token 7."""
    objective, params, batch = train.ReplacedToken(rate=0.4, weight=3.0), parameters(ELECTRA), text(8)
    params['generator']['output_bias'] = 1e3 * (np.arange(ELECTRA.generator.padded_vocab) == 7).astype(np.float32)
    batch['weights'] = present = (np.arange(20) < [[20]] * 7 + [[11]]).astype(np.float32)
    total, metrics = architectures.jit(lambda batch: objective.loss(ELECTRA, params, batch))(batch)
    masked, own = objective.prepare(ELECTRA, batch, jax.random.key(0)), ELECTRA.of_generator(params)
    nll, _, _ = ELECTRA.generator.token_losses(own, masked)
    hidden = np.asarray(masked['weights'])
    inputs = np.where(hidden > 0, 7, batch['targets'])
    judged = ELECTRA.discriminator.states(params['discriminator'], {**masked, 'inputs': inputs})
    score = np.asarray(ELECTRA.discriminator.scores(params['discriminator'], judged)[..., 0], np.float64)
    probability, replaced = 1 / (1 + np.exp(-score)), inputs != batch['targets']
    binary = -np.log(np.where(replaced, probability, 1 - probability))
    expected = (nll * hidden).sum() / 0.4 + 3 * (binary * present).sum()
    np.testing.assert_allclose(total, expected / present.sum(), rtol=1e-5)
    right = (probability > 0.5) == replaced
    np.testing.assert_allclose(metrics['detector_accuracy'], (right * present).sum() / present.sum(), rtol=1e-5)
    np.testing.assert_allclose(own['tokens'], params['discriminator']['tokens'] @ params['projection'], rtol=1e-6)


def test_samples_are_the_generators_and_give_it_no_gradient():
    params, batch = parameters(ELECTRA), text(8)
    certain = np.zeros(ELECTRA.generator.padded_vocab, np.float32)
    certain[7] = 1e4
    params['generator']['output_bias'] = certain
    objective = train.ReplacedToken(rate=0.5)
    _, (_, _, other), (hidden, _), _ = objective._passes(ELECTRA, params, batch, KEY)
    np.testing.assert_array_equal(np.asarray(other), (np.asarray(hidden) > 0) & (batch['targets'] != 7))

    def detector(params):
        return objective._passes(ELECTRA, params, batch, KEY)[1][0].sum()
    slope = architectures.jit(jax.grad(detector))(parameters(ELECTRA))
    assert all(not np.any(leaf) for leaf in jax.tree.leaves((slope['generator'], slope['projection'])))
    assert np.any(slope['discriminator']['detector'])


# Contrasted texts.

def test_the_contrastive_loss_is_that_of_the_formula():
    params, batch, objective = parameters(BERT), text(8), train.Contrastive(0.1)
    batch['weights'] = np.repeat(np.arange(8) < 7, 20).reshape(8, 20).astype(np.float32)
    total, metrics = architectures.jit(lambda batch: objective.loss(BERT, params, batch, KEY))(batch)
    keys = jax.random.split(KEY)
    rows = {'inputs': batch['targets'], 'targets': batch['targets'], 'segments': batch['weights'].astype(np.int32)}
    one, two = (np.asarray(BERT.vectors(params, BERT.states(params, rows, key)), np.float64)[:7] for key in keys)
    assert np.abs(one - two).max() > 1e-2
    one, two = (v / np.linalg.norm(v, axis=-1, keepdims=True) for v in (one, two))
    scores = one @ two.T / 0.1
    np.testing.assert_allclose(total, np.mean(np.log(np.exp(scores).sum(-1)) - np.diag(scores)), rtol=1e-4)
    assert metrics['weight'] == 7
    np.testing.assert_allclose(metrics['accuracy'], np.mean(scores.argmax(-1) == np.arange(7)), rtol=1e-6)


# Laws of all.

@every
def test_padding_never_matters(name):
    objective, model = CASES[name]
    batch = {**text(8), 'weights': (np.arange(20) < [[20]] * 7 + [[9]]).astype(np.float32)}
    other = {**batch, 'targets': np.where(batch['weights'] > 0, batch['targets'], 3)}
    calm = partial(objective.sums, model, 1, parameters(model), key=jax.random.key(0))
    sums = architectures.jit(lambda batch: calm({**batch, 'source': jnp.zeros(8, jnp.int32)}))
    np.testing.assert_array_equal(sums(batch), sums(other))


@pytest.mark.parametrize('name', ['next', 'replaced', 'contrast'])
def test_every_mesh_is_one_device(name):
    """Also where micro-batches are added up on each shard before one all-reduce."""
    params, batch = parameters(CASES[name][1]), text(32)
    gradient = train.accumulated(loss(name), 2)
    alone = architectures.jit(gradient)(params, batch, KEY)
    for sizes in [{'data': 4, 'tensor': 2}] + [{'fsdp': 2, 'data': 2, 'context': 2}] * (name == 'next'):
        mesh = sharding.make_mesh(sizes)
        with jax.set_mesh(mesh):
            placed = jax.device_put(params, sharding.mirror(params, CASES[name][1].axes(), mesh))
            split = architectures.jit(gradient)(placed, sharding.put(batch, mesh), KEY)
        jax.tree.map(partial(np.testing.assert_allclose, rtol=2e-3, atol=2e-5), split, alone)


@every
def test_training_lowers_the_loss(name):
    """Of texts in which every token is followed by the next, or, to be told apart, of any."""
    objective, model = CASES[name]
    tokens = ((np.random.default_rng(0).integers(0, 40, (32, 1)) + np.arange(21)) % 40).astype(np.int32)
    batch, tx = {'inputs': tokens[:, :-1], 'targets': tokens[:, 1:]}, optax.adam(1e-2)
    batch = text(32) if name == 'contrast' else batch
    params = architectures.jit(model.init)(jax.random.key(0))

    def step(state, key):
        params, moments = state
        value, gradient = jax.value_and_grad(lambda params: objective.loss(model, params, batch, key)[0])(params)
        updates, moments = tx.update(gradient, moments)
        return (optax.apply_updates(params, updates), moments), value
    _, losses = architectures.jit(lambda state: jax.lax.scan(step, state, jax.random.split(KEY, 60)))(
        (params, tx.init(params)))
    assert np.mean(losses[-10:]) < 0.94 * np.mean(losses[:3])


@pytest.mark.parametrize('make, words', [
    (lambda: train.NextSentence().check(dataclasses.replace(BERT, classes=0)), 'model.classes=2'),
    (lambda: train.NextSentence().prepare(BERT, {**text(), 'segments': text()['inputs']}, KEY), 'packing=windows'),
    (lambda: train.NextSentence().prepare(BERT, text(1), KEY), 'data.batch=2'),
    (lambda: train.ReplacedToken().check(BERT), 'has no generator'),
    (lambda: Electra(SMALL, BERT), 'head=Detector'),
    (lambda: Electra(dataclasses.replace(SMALL, vocab=200), ELECTRA.discriminator), 'vocab=200'),
    (lambda: Electra(dataclasses.replace(SMALL, embedding=TypedEmbedding(Learned(9))), ELECTRA.discriminator),
     'embedding are shared'),
    (lambda: train.Contrastive().check(BIDIRECTIONAL['bert']), 'layer.dropout'),
    (lambda: train.Contrastive().check(architectures.DECODERS['gpt2']), 'try an Encoder')])
def test_what_cannot_be_is_refused(make, words):
    with pytest.raises(config.Error, match=words):
        make()


@every
def test_what_is_scored_of_held_out_text(name, tmp_path):
    objective, model = CASES[name]
    model = dataclasses.replace(model, **{part: dataclasses.replace(getattr(model, part), vocab=261)
                                          for part in ('generator', 'discriminator') if name == 'replaced'} or {
                                              'vocab': 261})
    tokenizer = data.Controls(data.Bytes(), ('<separator>', '<first>', '<mask>'))
    corpus = data.Corpus(data.Synthetic(20, 100), data.Synthetic(5, 100), tokenizer, 20, 4)
    stream, mesh = corpus.open(tmp_path, 'valid'), sharding.make_mesh({'data': 1}, jax.devices()[:1])
    assert all(token in stream.encoder.controls for token in objective.reserved(model))
    scores = objective.score(model, parameters(model), stream, mesh, 2)
    own = {'next': {'label_accuracy'}, 'order': {'label_accuracy'}, 'replaced': {'detector_accuracy', 'replaced'},
           'contrast': {'texts'}}[name]
    assert own <= scores.keys() and 'bits_per_byte' not in scores and scores['loss'] > 0
    assert all(0 <= scores[key] <= 1 for key in own - {'texts'}) and scores.get('texts', 8) == 8
    assert any('validation' in line and 'loss' in line for line in objective.summary(scores, corpus))
