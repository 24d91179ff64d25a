"""The order in which rows are served: a keyed permutation per source and epoch, and a fixed mixing schedule.

Both are pure functions of the row number, so that nothing has to be remembered between steps: row 10^10 costs what
row 0 costs, and every host can work out its own rows.
"""

import dataclasses
import functools
import heapq
import math
from fractions import Fraction

import numpy as np

from lm import config

_ROUNDS = 10
_LONGEST_PERIOD = 2 ** 16
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_ROUND_KEYS = np.arange(_ROUNDS, dtype=np.uint64) * _GOLDEN


def _mix(word):
    """Returns uint64 words scrambled one to one: the finaliser of SplitMix64 (Steele, Lea, Flood 2014)."""
    word = word ^ (word >> np.uint64(30))
    word *= np.uint64(0xBF58476D1CE4E5B9)
    word ^= word >> np.uint64(27)
    word *= np.uint64(0x94D049BB133111EB)
    word ^= word >> np.uint64(31)
    return word


def key(seed, source, epoch):
    """Returns uint64 keys, one for each (`seed`, `source`, `epoch`); the arguments broadcast to [N] and are >= 0."""
    words = np.broadcast_arrays(*(np.atleast_1d(value).astype(np.uint64) for value in (seed, source, epoch)))
    state = np.zeros(words[0].shape, np.uint64)
    for word in words:
        state = _mix((state ^ word) + _GOLDEN)
    return state


def permute(index, size, key):
    """Returns where the permutation of range(`size`) named by `key` sends each `index`, int64 [N].

    The arguments broadcast to [N]: every element may have its own size and its own key.

    A Feistel network over pairs (left, right) of a rectangle with sides near sqrt(size): each round adds a keyed hash
    of one half to the other, modulo that half's side, which can be undone and is therefore one to one. The rectangle
    may have a few cells more than `size`; a point that lands on one walks on along its cycle until it is back inside,
    which keeps the map one to one on range(size). Source: Black and Rogaway, 'Ciphers with Arbitrary Finite Domains'
    (2002), methods 2 and 3.
    """
    index, size, key = np.broadcast_arrays(*(np.atleast_1d(value).astype(np.uint64) for value in (index, size, key)))
    width = np.ceil(np.sqrt(size.astype(np.float64))).astype(np.uint64)
    height = (size + width - np.uint64(1)) // width
    image = _encipher(index, width, height, key)
    while (outside := np.flatnonzero(image >= size)).size:
        image[outside] = _encipher(image[outside], width[outside], height[outside], key[outside])
    return image.astype(np.int64)


def _encipher(index, width, height, key):
    left, right = np.divmod(index, height)
    for number in range(0, _ROUNDS, 2):
        left += _hash(right, key + _ROUND_KEYS[number])
        left %= width
        right += _hash(left, key + _ROUND_KEYS[number + 1])
        right %= height
    return left * height + right


def _hash(half, key):
    word = (half + key) * np.uint64(0xBF58476D1CE4E5B9)
    word ^= word >> np.uint64(32)
    word *= np.uint64(0x94D049BB133111EB)
    word >>= np.uint64(24)
    return word


@dataclasses.dataclass(frozen=True, eq=False)
class Schedule:
    """Which source serves which row: `sources` [P] repeats with period P.

    `ranks` [P] counts the earlier rows of the same source within the period, `counts` [sources] those of a period.
    """
    sources: np.ndarray
    ranks: np.ndarray
    counts: np.ndarray

    def locate(self, row):
        """Returns the source that serves each `row` and how many rows it served before, both int64 [N]."""
        period, phase = np.divmod(np.asarray(row, np.int64), self.sources.size)
        source = self.sources[phase]
        return source, period * self.counts[source] + self.ranks[phase]


def schedule(weights):
    """Returns the Schedule that serves sources in proportion to `weights` (positive, of any sum).

    After any number of rows R, each source served weight * R rows to within 1, where weight is `shares(weights)` over
    their sum: exact for fractions with a common denominator up to 65536, rounded to 1/65536 for others.

    The n-th row of a source (from 0) may not be served before row floor(n / weight) and must be served before row
    ceil((n + 1) / weight); of those allowed, the one with the earliest deadline is served. That this always works is
    Tijdeman's chairman assignment (1980), and as 'Pfair' scheduling Baruah et al. (1996).
    """
    counts = shares(weights)
    period = sum(counts)
    waiting = [(0, source, 0) for source in range(len(counts))]
    ready, order, ranks = [], [], []
    for row in range(period):
        while waiting and waiting[0][0] <= row:
            _, source, rank = heapq.heappop(waiting)
            heapq.heappush(ready, (-(-(rank + 1) * period // counts[source]), source, rank))
        _, source, rank = heapq.heappop(ready)
        heapq.heappush(waiting, ((rank + 1) * period // counts[source], source, rank + 1))
        order.append(source)
        ranks.append(rank)
    return Schedule(np.array(order, np.int64), np.array(ranks, np.int64), np.array(counts, np.int64))


def shares(weights):
    """Returns how many rows of a period each source serves: integers in proportion to `weights`, [0.7 0.3] -> [7 3].

    Raises config.Error where a weight is not a positive number, or is less than 1/65536 of their sum.
    """
    for weight in weights:
        if not (math.isfinite(weight) and weight > 0):
            raise config.Error(f'weight={weight} is not a positive number; remove the source or raise its weight.')
    total = sum(map(Fraction, weights))
    exact = [Fraction(weight) / total for weight in weights]
    simple = [weight.limit_denominator(_LONGEST_PERIOD) for weight in exact]
    period = math.lcm(*(weight.denominator for weight in simple))
    faithful = all(abs(a - b) < Fraction(1, 10 ** 14) for a, b in zip(simple, exact))
    if period <= _LONGEST_PERIOD and sum(simple) == 1 and faithful:
        return [int(weight * period) for weight in simple]
    return _round_shares(exact)


def _round_shares(weights):
    """Returns integers that sum to 65536, by largest remainder."""
    counts = [int(weight * _LONGEST_PERIOD) for weight in weights]
    if 0 in counts:
        small = float(weights[counts.index(0)])
        raise config.Error(f'weight={small:.3g} of all is below 1/{_LONGEST_PERIOD}; remove the source or raise it.')
    largest = sorted(range(len(weights)), key=lambda i: counts[i] - weights[i] * _LONGEST_PERIOD)
    for source in largest[:_LONGEST_PERIOD - sum(counts)]:
        counts[source] += 1
    divisor = math.gcd(*counts)
    return [count // divisor for count in counts]


@dataclasses.dataclass(frozen=True, eq=False)
class Shuffled:
    """An endless order: sources mixed by `schedule`, each reshuffled in every epoch; `sizes` [sources] in rows."""
    schedule: Schedule
    sizes: np.ndarray
    seed: int

    def locate(self, row):
        """Returns the source of each `row` and the row within that source, both int64 [N]."""
        source, served = self.schedule.locate(row)
        size = self.sizes[source]
        epoch, index = np.divmod(served, size)
        return source, permute(index, size, key(self.seed, source, epoch))


@dataclasses.dataclass(frozen=True, eq=False)
class Spread:
    """One pass: every row of every source once; `sizes` [sources] in rows.

    However many rows come first, they are spread evenly over all: each source has its share of them, to within a few
    rows. Row r is number r * `_stride` of all, modulo their count.
    """
    sizes: np.ndarray

    def locate(self, row):
        """Returns the source of each `row` and the row within that source, both int64 [N]; past the end, the last."""
        stops = np.cumsum(self.sizes)
        total = int(stops[-1])
        step = _stride(total)
        row = np.minimum(row, total - 1) * step % total
        source = np.searchsorted(stops, row, side='right')
        return source, row - (stops - self.sizes)[source]


@functools.cache
def _stride(total):
    """Returns the number without a common divisor with `total` whose multiples, modulo it, spread best.

    That is one near its golden section whose continued fraction has no large quotient (Niederreiter 1978).
    """
    near = round(total * (5 ** 0.5 - 1) / 2)
    return min((n for n in range(near, near + 100) if math.gcd(n, total) == 1),
               key=lambda n: max(_quotients(total, n)))


def _quotients(a, b):
    """Yields the quotients of the continued fraction of a / b."""
    while b:
        yield a // b
        a, b = b, a % b
