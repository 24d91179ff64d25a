"""Lists of overrides, a dict a trial: `grid({'model.depth': [2, 4]}, sample({'optimizer.peak': (1e-4, 1e-2)}, 8))`."""
import itertools
import math
import random

from lm.config import Error


def grid(*axes):
    """Returns every combination of its axes, the last varying fastest.

    An axis is a list of override dicts, or {key: values}, which is an axis for each of its keys.
    {'a': [1, 2]}, {'b': [3, 4]} -> [{a: 1, b: 3}, {a: 1, b: 4}, {a: 2, b: 3}, {a: 2, b: 4}].
    """
    lists = [part for axis in axes for part in (_split(axis) if isinstance(axis, dict) else [list(axis)])]
    trials = []
    for parts in itertools.product(*lists):
        keys = [key for part in parts for key in part]
        twice = [key for key in keys if keys.count(key) > 1]
        if twice:
            raise Error(f'two axes of a grid set {twice[0]}; name it in one of them.')
        trials.append({key: value for part in parts for key, value in part.items()})
    return trials


def _split(axis):
    return [[{key: value} for value in values] for key, values in axis.items()]


def zipped(values):
    """Returns the trials that take the first of all values, then the second: {'a': [1, 2], 'b': [3, 4]} -> 2 trials.

    Raises config.Error where the lists are not of one length.
    """
    counts = {key: len(list(each)) for key, each in values.items()}
    if len(set(counts.values())) > 1:
        told = ', '.join(f'{key} has {count}' for key, count in counts.items())
        raise Error(f'zipped values are not as many: {told}; give as many of each, or use grid.')
    return [dict(zip(values, each, strict=True)) for each in zip(*values.values(), strict=True)]


def chain(*sweeps):
    """Returns the trials of all sweeps, one sweep after another."""
    return list(itertools.chain(*sweeps))


def sample(ranges, count, seed=0):
    """Returns `count` trials drawn at random: log-uniform between the two of a tuple, evenly among those of a list.

    Numbers have four digits. The first trials of a larger count are those of a smaller one. Raises config.Error where a
    range is not of positive numbers, the lower first.
    """
    for key, given in ranges.items():
        if isinstance(given, tuple) and not (len(given) == 2 and 0 < given[0] < given[1]):
            raise Error(f'{key}={given} is no range; try a tuple of two positive numbers, the lower first, '
                        'or a list to choose from.')
    draw = random.Random(seed)
    return [{key: _drawn(draw, given) for key, given in ranges.items()} for _ in range(count)]


def _drawn(draw, given):
    if not isinstance(given, tuple):
        return draw.choice(given)
    return float(f'{math.exp(draw.uniform(*map(math.log, given))):.4g}')
