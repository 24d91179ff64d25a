"""What predicts text by counting: the marks that a language model has to beat."""
import lzma

import numpy as np

ORDER = 5
END = b'\0'  # behind each document, as a model's end token is: sources reject text that has this character


def bits_per_byte(train, held):
    """Returns {name: bits per byte} of the documents `held`, lists of bytes as `train` is: the bits of every byte and
    every end over the number of bytes. The n-gram learns from `train`, xz sees nothing but `held`.
    """
    size, (train, held) = sum(map(len, held)), (b''.join(text + END for text in texts) for texts in (train, held))
    return {'xz -9': 8 * len(lzma.compress(held, preset=9)) / size,
            f'order-{ORDER} n-gram': float(np.sum(ngram(train, held, ORDER))) / size}


def ngram(train, held, order):
    """Returns the bits of each byte of `held`, after an end, under an interpolated Kneser-Ney n-gram of `train`.

    Orders below the highest count the distinct bytes seen before an n-gram instead of its occurrences; each order is
    discounted by n1 / (n1 + 2 n2), or 3/4 where there are no n1 or n2 (Kneser and Ney 1995; Chen and Goodman 1999).
    `order` is from 2 to 8.
    """
    tables = [np.unique(_grams(train, order), return_counts=True)]
    for size in range(order - 1, 0, -1):
        suffixes = tables[-1][0] & np.uint64(256 ** size - 1)
        tables.append(np.unique(suffixes, return_counts=True))
    chance = np.full(len(held), 1 / 256)
    held = END * (order - 1) + held
    for size, (kinds, counts) in enumerate(reversed(tables), start=1):
        chance = _interpolate(kinds, counts, _grams(held, size)[order - size:], chance)
    return -np.log2(chance)


def _grams(text, size):
    """Returns every run of `size` bytes as one number, the last byte lowest: uint64 [bytes - size + 1]."""
    letters = np.frombuffer(text, np.uint8)
    grams = np.zeros(letters.size - size + 1, np.uint64)
    for i in range(size):
        grams = grams << np.uint64(8) | letters[i:letters.size - size + 1 + i]
    return grams


def _interpolate(kinds, counts, grams, lower):
    """Returns the probability of the last byte of each gram given those before it, backed by `lower` [grams]."""
    once, twice = np.sum(counts == 1), np.sum(counts == 2)
    discount = once / (once + 2 * twice) if once and twice else 0.75
    starts = np.flatnonzero(np.diff(kinds >> np.uint64(8), prepend=np.uint64(2 ** 63)))
    contexts = kinds[starts] >> np.uint64(8)
    totals = np.add.reduceat(counts, starts)
    types = np.diff(starts, append=kinds.size)
    count = _look_up(kinds, counts, grams)
    before = grams >> np.uint64(8)
    total = np.maximum(_look_up(contexts, totals, before), 1)
    spread = discount * _look_up(contexts, types, before) / total
    known = _look_up(contexts, totals, before) > 0
    return np.where(known, np.maximum(count - discount, 0) / total + spread * lower, lower)


def _look_up(keys, values, wanted):
    """Returns the value of each wanted key, 0 where it is not among the sorted `keys`."""
    at = np.minimum(np.searchsorted(keys, wanted), keys.size - 1)
    return np.where(keys[at] == wanted, values[at], 0)
