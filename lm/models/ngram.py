"""What predicts text by counting: n-grams of any tokens, the mark that a language model has to beat, and xz."""
import lzma
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

ORDER = 5
END = 256  # the end of a document among bytes
FALLBACK = np.array([0, 0.5, 1, 1.5])  # discounts where counts are too few to estimate them, as in KenLM


class Level(NamedTuple):
    """The n-grams of one order. keys [n-grams], sorted: the number of its last n - 1 tokens * (vocab + 1) + its first.

    chance [n-grams]: of the last token after the others. backoff [n-grams one shorter]: the weight of the order below
    after each of them. N-grams have their places in `keys` as numbers, those of order 1 are numbered by their token.
    """

    keys: np.ndarray
    chance: np.ndarray
    backoff: np.ndarray


@dataclass(frozen=True, eq=False)
class NGram:
    """Chances of `vocab` tokens by the n-grams that they end, `levels` of order 1 and up."""

    vocab: int
    levels: tuple[Level, ...]

    def log_chances(self, tokens, offsets):
        """Returns log p of each of `tokens` [N] after those before it in its document, nats in float64 [N].

        offsets [documents + 1]: where documents begin and end.
        """
        text, depth = _started(tokens, offsets, self.vocab)
        grams, chance, stride = text, self.levels[0].chance[text], np.int64(self.vocab + 1)
        for n, level in enumerate(self.levels[1:], start=1):
            contexts, at = np.append(-1, grams[:-1]), np.flatnonzero((depth >= n) & (grams >= 0))
            chance = np.append(level.backoff, 1)[contexts] * chance  # 1 after what is no n-gram, -1
            numbers = _find(level.keys, grams[at] * stride + text[at - n])
            grams = np.full(text.size, -1)
            grams[at] = numbers
            seen = at[numbers >= 0]
            chance[seen] = level.chance[grams[seen]]
        return np.log(chance[depth > 0])


def fit(tokens, offsets, vocab, order=ORDER):
    """Returns the NGram of documents: `tokens` [N], ids below `vocab`, bounded by `offsets` [documents + 1].

    Interpolated Kneser-Ney with three discounts an order (Chen and Goodman 1999). Below the highest order an n-gram
    counts by the distinct tokens before it; one that begins a document, which a start that is never predicted precedes,
    by its occurrences (Heafield et al. 2013). Order 1 is interpolated with 1 / vocab, all that an unseen token gets.
    """
    levels, lower = [], np.array([1 / vocab])
    for keys, shorter, contexts, counts in _count(*_started(tokens, offsets, vocab), vocab, order):
        discounts = _discounts(counts)[np.minimum(counts, 3)]
        totals = np.bincount(contexts, counts, lower.size)
        spread = np.bincount(contexts, discounts, lower.size)
        backoff = np.where(totals > 0, spread, 1) / np.maximum(totals, 1)
        kept = (counts - discounts) / np.maximum(totals, 1)[contexts]
        lower = kept + backoff[contexts] * lower[shorter]
        levels.append(Level(keys, lower, backoff))
    return NGram(vocab, tuple(levels))


def _started(tokens, offsets, vocab):
    """Returns (the documents, each after a start, token `vocab`; how many tokens of its document precede each)."""
    starts, sizes = np.asarray(offsets)[:-1], np.diff(offsets) + 1
    text = np.insert(np.asarray(tokens, np.int32), starts, vocab)
    return text, np.arange(text.size, dtype=np.int32) - np.repeat(np.cumsum(sizes) - sizes, sizes).astype(np.int32)


def _count(text, depth, vocab, order):
    """Yields (keys, shorter, contexts, counts) of the n-grams of orders 1 to `order`.

    shorter, contexts: the numbers, one order below, of what is left of an n-gram without its first and last token.
    """
    grams, stride = text, np.int64(vocab + 1)
    keys, shorter, contexts = np.arange(stride), *np.zeros((2, stride), np.int32)
    for n in range(1, order):
        at = np.flatnonzero(depth >= n).astype(np.int32)
        longer = grams[at] * stride + text[at - n]
        longer, ranks = _sort(longer)
        at = at[ranks]
        new = np.diff(longer, prepend=-1) > 0
        first = at[new]
        begun = np.bincount(grams[depth == n - 1], minlength=keys.size) if n > 1 else 0
        parents = grams[first]
        yield keys, shorter, contexts, np.bincount(parents, minlength=keys.size) + begun
        keys, shorter, contexts = longer[new], parents, grams[first - 1]
        grams = np.full(text.size, -1, np.int32)
        grams[at] = np.cumsum(new, dtype=np.int32) - 1
    yield keys, shorter, contexts, np.bincount(grams[depth >= max(order - 1, 1)], minlength=keys.size)


def _sort(keys):
    """Returns (the keys in order, their places): sorted with the places in the low bits, where those fit, as sorting
    values takes a third of the time of sorting places by them.
    """
    bits = max(keys.size - 1, 0).bit_length()
    if int(keys.max(initial=0)).bit_length() + bits > 63:
        ranks = np.argsort(keys)
        return keys[ranks], ranks
    packed = np.sort(keys << bits | np.arange(keys.size))
    return packed >> bits, packed & (1 << bits) - 1


def _discounts(counts):
    """Returns what is taken from counts of 0, 1, 2, and 3 or more (Chen and Goodman 1999, equation 26)."""
    one, two, three, four = np.bincount(counts, minlength=5)[1:5]
    if not one * two * three:
        return FALLBACK
    ratio = one / (one + 2 * two)
    discounts = np.array([0, 1 - 2 * ratio * two / one, 2 - 3 * ratio * three / two, 3 - 4 * ratio * four / three])
    return discounts if discounts.min() >= 0 else FALLBACK


def _find(keys, wanted):
    """Returns the place of each of `wanted` among the sorted `keys`, -1 where it is not there."""
    ordered, ranks = _sort(wanted)  # in order, they are looked up ten times as fast
    places = np.empty(wanted.size, np.int64)
    places[ranks] = np.searchsorted(keys, ordered)
    return np.where(np.append(keys, -1)[places] == wanted, places, -1)


def bits_per_byte(train, held):
    """Returns {name: bits per byte} of the documents `held`, lists of bytes as `train` is: the bits of every byte and
    every end over the number of bytes. The n-gram learns from `train`, xz sees nothing but `held`.
    """
    size, model = sum(map(len, held)), fit(*_join(train), END + 1)
    packed = lzma.compress(b''.join(text + b'\0' for text in held), preset=9)  # sources reject text that has this byte
    bits = -np.sum(model.log_chances(*_join(held))) / np.log(2)
    return {'xz -9': 8 * len(packed) / size, f'order-{ORDER} n-gram': float(bits) / size}


def _join(texts):
    """Returns (tokens, offsets) of lists of bytes, an end behind each."""
    tokens = np.concatenate([np.append(np.frombuffer(text, np.uint8).astype(np.int64), END) for text in texts])
    return tokens, np.cumsum([0, *(len(text) + 1 for text in texts)])
