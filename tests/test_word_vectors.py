"""Word vectors: losses against loops in float64, what they learn, their scores and their text format."""
import os
import pathlib
import subprocess

import architectures
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm import config, data, optim, train
from lm.data import packing
from lm.models import Decoder, word_vectors
from lm.models import vectors as vectors_of_texts
from lm.models.word_vectors import WordVectors
from lm.tasks import word_similarity
from lm.train import BagOfWords, Glove, SkipGram
from lm.train.objectives.words import names

ROWS, LENGTH, VOCAB, WIDTH = 3, 9, 7, 4
rng = np.random.default_rng(0)
TARGETS = rng.integers(0, VOCAB, (ROWS, LENGTH)).astype(np.int32)
FREQUENCY = np.array([0.4, 0.2, 0.1, 0.1, 0.1, 0.06, 0.04], np.float32)[TARGETS]
WEIGHTS = np.ones((ROWS, LENGTH), np.float32)
WEIGHTS[2, 5:] = 0
BATCH = {'targets': TARGETS, 'frequency': FREQUENCY, 'weights': WEIGHTS}
PARAMS = {name: rng.standard_normal((VOCAB, width)) for name, width in (
    ('words', WIDTH), ('contexts', WIDTH), ('word_bias', 1), ('context_bias', 1))}
MODEL = WordVectors(VOCAB, WIDTH, bias=True)


def softplus(x):
    return np.log1p(np.exp(x))


def kept_of(subsample):
    return WEIGHTS * np.minimum(np.sqrt(subsample / FREQUENCY) + subsample / FREQUENCY, 1)


def noise_of(row, power, negatives):
    """The weights of the words of the next row: those of draws by frequency to the power."""
    other = (row - 1) % ROWS
    weights = WEIGHTS[other] * FREQUENCY[other].astype(float) ** (power - 1)
    return TARGETS[other], negatives * weights / weights.sum()


def test_words_and_windows_are_drawn_by_the_number_of_a_row():
    objective, key = SkipGram(window=3, subsample=0.05), jax.random.key(0)
    kept, pairs = objective.neighbours(BATCH, key)
    first = objective.neighbours({name: rows[:2] for name, rows in BATCH.items()}, key)
    np.testing.assert_array_equal(first[0], kept[:2])
    np.testing.assert_array_equal(first[1], pairs[:2])
    equal = {name: np.repeat(rows[:1], 2, 0) for name, rows in BATCH.items()}
    _, pairs = objective.neighbours(equal, key)
    assert (np.asarray(pairs[0]) != np.asarray(pairs[1])).any()


def test_skip_gram_is_the_sum_over_pairs_and_noise():
    kept, window = kept_of(0.05), 3
    expected = np.zeros((ROWS, 2))
    for row, t, s in np.ndindex(ROWS, LENGTH, LENGTH):
        weight = kept[row, t] * kept[row, s] * max(0, window + 1 - abs(t - s)) / window * (t != s)
        word = PARAMS['words'][TARGETS[row, t]]
        noise, weights = noise_of(row, 0.5, 4)
        wrong = sum(w * softplus(word @ PARAMS['contexts'][other]) for other, w in zip(noise, weights, strict=True))
        expected[row] += weight * (softplus(-word @ PARAMS['contexts'][TARGETS[row, s]]) + wrong), weight
    objective = SkipGram(window=window, negatives=4.0, power=0.5, subsample=0.05)
    terms = architectures.jit(lambda params, batch: objective.terms(MODEL, params, batch))(PARAMS, BATCH)
    np.testing.assert_allclose(terms, expected, rtol=1e-5)


def test_bag_of_words_takes_the_mean_of_the_neighbours():
    kept, window = kept_of(0.05), 2
    expected = np.zeros((ROWS, 2))
    for row, t in np.ndindex(ROWS, LENGTH):
        weights = [kept[row, s] * max(0, window + 1 - abs(t - s)) / window * (t != s) for s in range(LENGTH)]
        if kept[row, t] and sum(weights):
            mean = np.average(PARAMS['words'][TARGETS[row]], axis=0, weights=weights)
            noise, shares = noise_of(row, 0.75, 5)
            wrong = sum(w * softplus(mean @ PARAMS['contexts'][other]) for other, w in zip(noise, shares, strict=True))
            true = softplus(-mean @ PARAMS['contexts'][TARGETS[row, t]])
            expected[row] += kept[row, t] * (true + wrong), kept[row, t]
    objective = BagOfWords(window=window, subsample=0.05)
    terms = architectures.jit(lambda params, batch: objective.terms(MODEL, params, batch))(PARAMS, BATCH)
    np.testing.assert_allclose(terms, expected, rtol=1e-5)


def test_glove_weighs_squares_by_counts():
    batch = {'inputs': TARGETS, 'targets': TARGETS[::-1].copy(),
             'counts': rng.uniform(0.1, 20, (ROWS, LENGTH)).astype(np.float32)}
    expected = np.zeros((ROWS, 2))
    for row, t in np.ndindex(ROWS, LENGTH):
        i, j, count = (batch[name][row, t] for name in ('inputs', 'targets', 'counts'))
        score = PARAMS['words'][i] @ PARAMS['contexts'][j] + PARAMS['word_bias'][i, 0] + PARAMS['context_bias'][j, 0]
        expected[row] += min((count / 10) ** 0.75, 1) * (score - np.log(count)) ** 2, 1
    terms = architectures.jit(lambda params, batch: Glove(most=10.0).terms(MODEL, params, batch))(PARAMS, batch)
    np.testing.assert_allclose(terms, expected, rtol=1e-5)


def test_draws_are_those_of_the_paper_and_of_the_key_alone():
    """Words stay by their chance, those left move together, and windows of 1 to 3 are equally likely."""
    objective, batch = SkipGram(window=3, subsample=0.05), {name: np.repeat(x, 2000, 0) for name, x in BATCH.items()}
    draw = architectures.jit(objective.neighbours)
    kept, pairs = (np.asarray(x) for x in draw(batch, jax.random.key(0)))
    np.testing.assert_allclose(kept.reshape(ROWS, 2000, LENGTH).mean(1), kept_of(0.05), atol=0.04)
    assert (kept[:, :, None] * kept[:, None] >= pairs).all() and not pairs[:, range(LENGTH), range(LENGTH)].any()
    near = {distance: [] for distance in range(1, 5)}
    for row in range(0, 6000, 7):
        at = np.flatnonzero(kept[row])
        for distance in near:
            near[distance] += pairs[row][at[:-distance], at[distance:]].tolist() if at.size > distance else []
    assert [round(np.mean(near[distance]), 1) for distance in near] == [1.0, 0.7, 0.3, 0.0]
    assert all((a == b).all() for a, b in zip((kept, pairs), draw(batch, jax.random.key(0)), strict=True))
    assert (draw(batch, jax.random.key(1))[1] != pairs).any()


def settings(tmp_path, objective, rows, bias=False):
    """Two topics of five words, never in one document; every word alike frequent."""
    draws = np.random.default_rng(1)
    for number in range(60):
        words = draws.choice([f'{"ab"[number % 2]}{word}' for word in range(5)], 200)
        (tmp_path / f'{number}.txt').write_text(' '.join(words) + '\n')
    return train.Config(
        model=WordVectors(vocab=12, width=8, bias=bias),
        data=data.Corpus(train=data.Files(str(tmp_path / '*.txt')), valid=None, tokenizer=data.Words(), context=20,
                         batch=8, packing=rows),
        optimizer=optim.AdaGrad(peak=0.3, initial=0.0, eps=1e-20, clip=0.0), steps=60, objective=objective)


@pytest.mark.parametrize(('objective', 'rows', 'bias'), [
    (SkipGram(subsample=0.0), 'counted', False), (BagOfWords(subsample=0.0), 'counted', False),
    (Glove(), 'cooccurrences', True)], ids=['skip-gram', 'bag of words', 'glove'])
def test_words_of_one_topic_become_alike(tmp_path, objective, rows, bias):
    """A run of the one loop's step: every cosine within a topic is above every one across."""
    experiment = settings(tmp_path, objective, rows, bias)
    stream = experiment.data.open(tmp_path / 'cache')
    built = train.parts(experiment)
    state, step, losses = built.init(), architectures.jit(built.step), []
    for number in range(experiment.steps):
        state, metrics = step(state, stream.batch_at(number))
        losses.append(float(metrics['loss']))
    assert np.mean(losses[-5:]) < 0.9 * losses[0]
    vectors = np.asarray(experiment.model.vectors(state.params))[2:]
    assert names(stream.encoder)[2:] == [f'{topic}{word}' for topic in 'ab' for word in range(5)]
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = unit @ unit.T
    within = np.kron(np.eye(2), np.ones((5, 5))) > 0
    assert cosines[within].min() > cosines[~within].max() + 0.2


def test_a_model_or_rows_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(config.Error, match=r'SkipGram trains word vectors, not a Decoder; try model=WordVectors'):
        SkipGram().check(Decoder(vocab=11, depth=1, width=24))
    with pytest.raises(config.Error, match=r'try model.bias=true'):
        Glove().check(WordVectors(5))
    windows = packing.named('windows').cut(np.arange(9), np.array([0, 9]), 4, True).gather(np.array([0]))
    with pytest.raises(config.Error, match=r'try data.packing=counted'):
        SkipGram().terms(MODEL, PARAMS, windows)
    with pytest.raises(config.Error, match=r'try data.packing=cooccurrences'):
        Glove().terms(MODEL, PARAMS, windows)


def write_sets(tmp_path):
    (tmp_path / 'pairs.txt').write_text('word 1,word 2,mean\nred,blue,5\nred\tgreen\t3\nBlue,green,4\nred,absent,9\n'
                                        'one,two,1\nred,two,3\n')
    (tmp_path / 'questions.txt').write_text(': colours\nred blue one two\nblue red two one\nred green one absent\n'
                                            ': others\nred green one blue\n')
    words = ['red', 'blue', 'green', 'one', 'two']
    vectors = np.array([[1, 0, 0.1], [1, 1, 0], [-1, 0.2, 0.3], [0, -1, 1], [0.1, 0.1, 1]], np.float32)
    return words, vectors, [str(tmp_path / name) for name in ('pairs.txt', 'questions.txt')]


def test_scores_are_rank_correlation_and_the_share_of_analogies(tmp_path):
    """Cosines of the five covered pairs are 0.70, -0.91, -0.55, 0.60, 0.19: ranks 5 1 2 4 3, judgements' 5 2.5 4 1 2.5.
    """
    words, vectors, (pairs, questions) = write_sets(tmp_path)
    measured = word_similarity.scores(words, vectors, [pairs], questions)
    expected = np.corrcoef([5, 1, 2, 4, 3], [5, 2.5, 4, 1, 2.5])[0, 1]
    assert measured == {'pairs': pytest.approx(expected, rel=1e-6), 'analogies': pytest.approx(2 / 3)}
    nothing = word_similarity.scores(['x', 'y'], vectors[:2], [pairs], questions)
    assert nothing == {'pairs': 0.0, 'analogies': 0.0}
    with pytest.raises(config.Error, match='cannot read the word set'):
        word_similarity.scores(words, vectors, [str(tmp_path / 'absent.txt')])


def test_the_nearest_words_are_shown(tmp_path):
    words, vectors, _ = write_sets(tmp_path)
    assert word_similarity.nearest(words, vectors, ['two', 'absent'], 2) == {'two': ['one', 'green']}
    (tmp_path / 'texts').mkdir()
    experiment = settings(tmp_path / 'texts', SkipGram(sample='a1 b3 c0'), 'counted')
    encoder = experiment.data.open(tmp_path / 'cache').encoder
    params = {'words': jnp.asarray([[0, 0], [0, 0], *([1 + i, 0.1] for i in range(5)),
                                    *([0.1, 1 + i] for i in range(5))])}
    lines = experiment.objective.show(experiment.model, params, encoder, []).splitlines()
    assert [line.split(': ')[0] for line in lines] == ['a1', 'b3']
    assert set(lines[0].split()[1:5]) == {'a0', 'a2', 'a3', 'a4'}
    one, both = vectors_of_texts.vectors(experiment.model, params, encoder, ['a1', 'b3 a1'])
    row = np.asarray(params['words'])[encoder.encode('a1')[0]]
    np.testing.assert_allclose(one, row / np.linalg.norm(row), rtol=1e-6)
    assert 0 < one @ both < 1 and np.linalg.norm(both) == pytest.approx(1)


def test_text_format_round_trip_and_its_errors(tmp_path):
    words, vectors, _ = write_sets(tmp_path)
    words[3] = 'eins\u00fc'
    word_vectors.write(tmp_path / 'v.txt', words, vectors)
    again, read = word_vectors.read(tmp_path / 'v.txt')
    assert again == words and (read == vectors).all()
    word_vectors.write(tmp_path / 'none.txt', [], vectors[:0])
    assert word_vectors.read(tmp_path / 'none.txt')[1].shape == vectors[:0].shape
    for word in ('a b', '\udc80'):
        with pytest.raises(config.Error, match='is empty, has a space, .* or is no text; give it another name'):
            word_vectors.write(tmp_path / 'v.txt', [word], vectors[:1])
    for text, message in (('2 3\na 1 2 3\n', 'announces 2 words of 3 numbers and holds 1 of 3'),
                          ('a 1 2\n', "not in word2vec's text format"), ('1 2\na 1 x\n', 'could not convert'),
                          ('2 2\na 1 2\nb 1\n', "not in word2vec's text format")):
        (tmp_path / 'v.txt').write_text(text)
        with pytest.raises(config.Error, match=message):
            word_vectors.read(tmp_path / 'v.txt')


def test_gensim_reads_the_text_format_writes_it_and_gives_the_same_scores(tmp_path):
    peers = os.environ.get('LM_PEERS', '.venv-peers/bin/python')
    if not pathlib.Path(peers).exists():
        pytest.skip(f'{peers} is absent; LM_PEERS names the Python of an environment with gensim')
    _, _, (pairs, questions) = write_sets(tmp_path)
    words, vectors = ['red', 'blue', 'green', 'one', 'two', '<0>'], rng.standard_normal((6, 5)).astype(np.float32)
    word_vectors.write(tmp_path / 'v.txt', words, vectors)
    (tmp_path / 'tabs.txt').write_text(pathlib.Path(pairs).read_text().replace(',', '\t'))
    code = f'''
from gensim.models import KeyedVectors
vectors = KeyedVectors.load_word2vec_format({str(tmp_path / 'v.txt')!r})
print(vectors.index_to_key == {words!r}, vectors.evaluate_word_pairs({str(tmp_path / 'tabs.txt')!r})[1][0],
      vectors.evaluate_word_analogies({questions!r})[0])
vectors.save_word2vec_format({str(tmp_path / 'theirs.txt')!r})
'''
    done = subprocess.run([peers, '-c', code], capture_output=True, text=True, check=True)
    equal, correlation, accuracy = done.stdout.split()
    measured = word_similarity.scores(words, vectors, [pairs], questions)
    assert equal == 'True'
    assert measured['pairs'] == pytest.approx(float(correlation), abs=1e-6)
    assert measured['analogies'] == pytest.approx(float(accuracy))
    theirs, again = word_vectors.read(tmp_path / 'theirs.txt')
    assert theirs == words and (again == vectors).all()


def test_initial_vectors_are_small_words_and_no_contexts():
    params = WordVectors(50, 10).init(jax.random.key(0))
    assert np.abs(params['words']).max() <= 0.05 and np.std(params['words']) > 0.02 and not params['contexts'].any()
    assert jnp.array_equal(WordVectors(50, 10).vectors(params), params['words'])
