"""Pairs of tokens, and how often one is within ten tokens of the other in a document: rows for GloVe."""
import dataclasses

import numpy as np

from lm.data.packing import Rows

WINDOW = 10  # on either side; a pair at distance d counts 1 / d (Pennington et al. 2014, section 4.2)


def cut(tokens, offsets, context, ended, directory=None):
    """Returns the Cooccurrences in `tokens` [N], both orders of a pair, in an order that is random and always the same.
    """
    tokens = np.asarray(tokens, np.int64)
    document, size = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets)), int(tokens.max(initial=0)) + 1
    keys, counts = [], []
    for distance in range(1, WINDOW + 1):
        near = document[distance:] == document[:-distance]
        pairs, times = _runs(np.sort((tokens[:-distance] * size + tokens[distance:])[near]))
        keys += [pairs, pairs % size * size + pairs // size]
        counts += [times / distance] * 2
    keys, counts = np.concatenate(keys), np.concatenate(counts)
    ranks = np.argsort(keys, kind='stable')
    keys, counts = keys[ranks], counts[ranks]
    first = np.flatnonzero(np.diff(keys, prepend=-1))
    counts = np.add.reduceat(counts, first) if first.size else counts
    mixed = np.random.default_rng(0).permutation(first.size)
    pairs = keys[first][mixed]
    seen = np.zeros(size, np.int64)
    seen[tokens[::-1]] = np.arange(tokens.size)[::-1]
    return Cooccurrences(*(part.astype(np.int32) for part in (pairs // size, pairs % size)),
                         counts[mixed].astype(np.float32), seen, context)


def _runs(keys):
    """Returns (distinct numbers, how often each occurs) of sorted `keys`; np.unique takes ten times as long."""
    first = np.flatnonzero(np.diff(keys, prepend=-1))
    return keys[first], np.diff(first, append=keys.size)


@dataclasses.dataclass(frozen=True, eq=False)
class Cooccurrences(Rows):
    """Rows of `context` of the pairs (inputs, targets) [N] with their `counts`; what is left at the end is dropped.

    seen [V]: where each token is first in the text.
    """
    inputs: np.ndarray
    targets: np.ndarray
    counts: np.ndarray
    seen: np.ndarray
    context: int

    @property
    def rows(self):
        return self.counts.size // self.context

    @property
    def predictions(self):
        return self.rows * self.context

    def gather(self, index):
        """Returns rows `index` [B]: 'inputs', 'targets' int32 and 'counts' float32 [B T]."""
        at = np.asarray(index)[:, None] * self.context + np.arange(self.context)
        return {'inputs': self.inputs[at], 'targets': self.targets[at], 'counts': self.counts[at]}

    def spans(self, row):
        at = self.seen[self.targets[row * self.context:(row + 1) * self.context]].tolist()
        return [(place, place + 1) for place in at]
