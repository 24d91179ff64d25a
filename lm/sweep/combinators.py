"""Lists of overrides, one dict per trial: grid({'model.depth': [2, 4]}, sample({'optimizer.peak': (1e-4, 1e-2)}, 8)).
"""
import itertools
import math
import random

from lm.config import Error


def grid(*axes):
    """Returns all combinations of its axes, the last varying fastest.

    An axis is a list of override dicts, or {key: values}, which is an axis for each of its keys.
    {'a': [1, 2]}, {'b': [3, 4]} -> [{a: 1, b: 3}, {a: 1, b: 4}, {a: 2, b: 3}, {a: 2, b: 4}].
    """
    lists = []
    for axis in axes:
        if isinstance(axis, dict):
            lists += [[{key: value} for value in values] for key, values in axis.items()]
        else:
            lists.append(list(axis))
    trials = []
    for parts in itertools.product(*lists):
        keys = [key for part in parts for key in part]
        repeated = [key for key in keys if keys.count(key) > 1]
        if repeated:
            raise Error(f'two axes of a grid set {repeated[0]}; name it in one of them.')
        trials.append({key: value for part in parts for key, value in part.items()})
    return trials


def zipped(values):
    """Returns one trial per position of the lists: {'a': [1, 2], 'b': [3, 4]} -> [{a: 1, b: 3}, {a: 2, b: 4}].

    Raises config.Error for lists of different lengths.
    """
    counts = {key: len(list(items)) for key, items in values.items()}
    if len(set(counts.values())) > 1:
        listed = ', '.join(f'{key} has {count}' for key, count in counts.items())
        raise Error(f'zipped lists differ in length: {listed}; give as many values of each, or use grid.')
    return [dict(zip(values, items, strict=True)) for items in zip(*values.values(), strict=True)]


def chain(*sweeps):
    """Returns the trials of several sweeps, one after another."""
    return list(itertools.chain(*sweeps))


def sample(ranges, count, seed=0):
    """Returns `count` random trials: log-uniform in a tuple (low, high), uniform over the items of a list.

    Numbers have four digits. A larger count continues the trials of a smaller one. Raises config.Error for a tuple that
    is not two positive numbers, the lower first.
    """
    for key, values in ranges.items():
        if isinstance(values, tuple) and not (len(values) == 2 and 0 < values[0] < values[1]):
            raise Error(f'{key}={values} is no range; try a tuple of two positive numbers, the lower first, '
                        'or a list to choose from.')
    draw = random.Random(seed)
    return [{key: _drawn(draw, values) for key, values in ranges.items()} for _ in range(count)]


def _drawn(draw, values):
    if not isinstance(values, tuple):
        return draw.choice(values)
    return float(f'{math.exp(draw.uniform(*map(math.log, values))):.4g}')
