"""IBM Model 1: which words of a sentence its translation's words come from (Brown et al. 1993)."""
from dataclasses import dataclass

import numpy as np

from lm import config


@dataclass(frozen=True, eq=False)
class Ibm1:
    """Chances t(target word | source word): `chances` of the pairs `keys`, source * vocab + target, sorted; else 0.

    vocab: how many target words there are. Source word 0 stands for none, and precedes each source sentence: words of
    a translation that come from no word come from it.
    """

    vocab: int
    keys: np.ndarray
    chances: np.ndarray

    def chance(self, source, target):
        """Returns t(target | source) of arrays of word numbers, which broadcast."""
        wanted = np.asarray(source, np.int64) * self.vocab + target
        places = np.minimum(np.searchsorted(self.keys, wanted), self.keys.size - 1)
        return np.where(self.keys[places] == wanted, self.chances[places], 0)

    def log_chance(self, source, target):
        """Returns log p(target sentence | source sentence) in nats, their length left aside; 0 begins no `source` here.
        """
        table = self.chance(np.append(0, source)[:, None], target)
        return float(np.sum(np.log(np.sum(table, axis=0) / len(table))))

    def align(self, source, target):
        """Returns the most likely [(place in source, place in target)], without words that come from none."""
        table = self.chance(np.append(0, source)[:, None], target)
        return [(int(best) - 1, place) for place, best in enumerate(np.argmax(table, axis=0)) if best]


def fit(sources, targets, vocab, rounds=5):
    """Returns (Ibm1, log p of all targets before each round and after the last, in nats) by expectation-maximisation.

    sources, targets: lists of sentences, arrays of word numbers, sources from 1 and targets below `vocab`. The chances
    begin equal; a round never lowers log p. It takes memory for every pair of words in every pair of sentences.
    """
    keys, links, lengths = _link(sources, targets, vocab)
    starts, owners = np.cumsum(lengths) - lengths, np.repeat(np.arange(lengths.size), lengths)
    _, origins = np.unique(keys // vocab, return_inverse=True)
    chances, history = np.full(keys.size, 1 / vocab), []
    for _ in range(rounds):
        weights, total = chances[links], np.add.reduceat(chances[links], starts)
        history.append(float(np.sum(np.log(total / lengths))))
        counts = np.bincount(links, weights / total[owners], keys.size)
        chances = counts / np.bincount(origins, counts)[origins]
    history.append(float(np.sum(np.log(np.add.reduceat(chances[links], starts) / lengths))))
    return Ibm1(vocab, keys, chances), history


def _link(sources, targets, vocab):
    """Returns (keys of the distinct pairs of words; of every target word with every word of its source, one after the
    other, the places [links] among them; how many links each target word has).
    """
    pairs = [(np.append(0, source), np.asarray(target, np.int64)) for source, target in zip(sources, targets,
                                                                                         strict=True)]
    if not any(target.size for _, target in pairs):
        raise config.Error('no sentence has a word to translate; give pairs of sentences.')
    links = np.concatenate([(source * vocab + target[:, None]).ravel() for source, target in pairs])
    lengths = np.concatenate([np.full(target.size, source.size) for source, target in pairs])
    keys, places = np.unique(links, return_inverse=True)
    return keys, places, lengths


def error_rate(sample):
    """Returns the alignment error rate of [(predicted, sure, possible links)], each a set of (source, target) places.

    1 - (|A S| + |A P|) / (|A| + |S|), sure links being possible ones (Och and Ney 2003). Raises config.Error where
    there is no link.
    """
    size = sum(len(set(links)) + len(sure) for links, sure, _ in sample)
    if not size:
        raise config.Error('neither the sample nor what is predicted has a link; give sentences with some.')
    hits = sum(len(set(links) & sure) + len(set(links) & (sure | possible)) for links, sure, possible in sample)
    return 1 - hits / size
