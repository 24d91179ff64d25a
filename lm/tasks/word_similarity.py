"""Word vectors scored against people: the similarity of pairs of words, and analogies."""
import gzip

import numpy as np

from lm import config
from lm.config import paths


def scores(words, vectors, similarity=(), analogies=''):
    """Returns {name: score} of vectors [V D] of strings `words`.

    similarity: files of `rank_correlation`, each named by its last part without its ending. analogies: a file of
    `analogy_accuracy`. Files are under $LM_DATA. A score is 0 where the vocabulary covers nothing of its file.
    """
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-30)
    places = {word: place for place, word in enumerate(words)}
    measured = {path.split('/')[-1].split('.')[0]: rank_correlation(places, unit, path)[0] for path in similarity}
    if analogies:
        measured['analogies'] = analogy_accuracy(places, unit, analogies)[0]
    return measured


def nearest(words, vectors, chosen, count=5):
    """Returns {word: [the `count` words nearest to it by cosine]} of those of the strings `chosen` that are known."""
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-30)
    places = {word: place for place, word in enumerate(words)}
    ranked = {word: np.argsort(-(unit @ unit[places[word]])) for word in chosen if word in places}
    return {word: [words[place] for place in order if place != places[word]][:count] for word, order in ranked.items()}


def rank_correlation(places, unit, path):
    """Returns (Spearman's correlation of cosines with the judgements in a file, how many of its pairs are covered).

    A line is two words and a number, between spaces, tabs or commas; any other is a heading. places: {word: row of
    `unit`}.
    """
    pairs, judged = [], []
    for line in _lines(path):
        first, second, *rest = line.replace(',', ' ').split() + [''] * 3
        pair = _place(places, first), _place(places, second)
        if None not in pair and (judgement := _number(rest[0])) is not None:
            pairs.append(pair)
            judged.append(judgement)
    if len(pairs) < 2:
        return 0.0, len(pairs)
    left, right = np.array(pairs).T
    cosines = np.einsum('PD,PD->P', unit[left], unit[right])
    return float(np.corrcoef(_ranks(cosines), _ranks(np.array(judged)))[0, 1]), len(pairs)


def analogy_accuracy(places, unit, path, batch=512):
    """Returns (share of questions 'a b c d' answered by d, how many are covered) of a file in word2vec's format.

    The answer is the word nearest to b - a + c, those three excepted (3CosAdd: Mikolov et al. 2013, arXiv:1301.3781).
    Sections begin with a colon. Questions with a word outside the vocabulary are left out.
    """
    questions = [[_place(places, word) for word in line.split()] for line in _lines(path) if not line.startswith(':')]
    covered = np.array([row for row in questions if len(row) == 4 and None not in row], np.int64).reshape(-1, 4)
    right = 0
    for start in range(0, len(covered), batch):
        a, b, c, d = covered[start:start + batch].T
        cosines = (unit[b] - unit[a] + unit[c]) @ unit.T
        for known in (a, b, c):
            cosines[np.arange(len(a)), known] = -np.inf
        right += int(np.sum(np.argmax(cosines, axis=1) == d))
    return right / max(len(covered), 1), len(covered)


def _place(places, word):
    """Returns the row of a word: as it is spelled, else in lower case, capitalised, or in upper case; None for none."""
    spellings = word, word.lower(), word.capitalize(), word.upper()
    return next((places[spelling] for spelling in spellings if spelling in places), None)


def _ranks(values):
    """Returns the ranks of values [N], equal values sharing the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return ((last - counts + last - 1) / 2)[inverse]


def _number(text):
    try:
        return float(text)
    except ValueError:
        return None


def _lines(path):
    content = paths.read(path, 'word set')
    try:
        content = gzip.decompress(content) if content[:2] == b'\x1f\x8b' else content
        return content.decode().splitlines()
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise config.Error(f'the word set {path!r} cannot be read ({config.first_line(error)}); '
                           'get it again.') from error
