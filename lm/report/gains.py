"""Gains: how much more the baseline must be trained for the loss of another variant, from baselines of several lengths.

A loss within a run is of a learning rate that has not decayed: read there, true gains of 2 came out above 4. Only final
losses make a gain.
"""
import itertools
import math
from typing import NamedTuple

import numpy as np

from lm.report import comparisons, statistics

POINTS = 400  # lengths between the shortest and the longest at which the baseline's loss is interpolated
POWER = 0.4  # between two lengths, which determine none: off by 2.4% a factor of 2 apart for powers of 0.2 to 0.8


class Gain(NamedTuple):
    """The budget that the baseline needs to reach another variant's loss, as a multiple of that variant's budget.

    bound: '<' or '>' where `times` is only a bound, the shortest or the longest baseline, else ''. interval: 95% over
    seeds, infinite or 0 where it leaves the lengths that were run.
    """

    times: float
    bound: str
    interval: tuple


def rises(scores):
    """Returns whether the baseline's final losses, [Score] of ascending lengths, rise with its length.

    They do where the longest ends no lower than the shortest, or one ends above a shorter one by a test at
    comparisons.ALPHA, divided by the number of pairs (Bonferroni). One length does not rise.
    """
    pairs = list(itertools.combinations(scores, 2))
    tests = [comparisons.compare('', longer, shorter) for shorter, longer in pairs]
    return bool(pairs) and (scores[-1].mean >= scores[0].mean or any(
        c.difference > 0 and c.p_raw < comparisons.ALPHA / len(pairs) for c in tests if c))


def gain(losses, cost, lengths, corrections=statistics.PLAIN):
    """Returns the Gain of a variant of final losses {seed: loss} at a cost, None without two seeds.

    lengths: [(cost, {seed: final loss})] of the baseline, two or more. The interval holds the lengths at which the
    baseline's losses, paired by seed where all have them, do not differ from the variant's (Fieller 1954). corrections:
    how far the difference of losses may lie (too low, too high).
    """
    lengths = sorted(lengths, key=lambda length: length[0])
    costs = np.array([cost for cost, _ in lengths])
    seeds = [seed for seed in lengths[0][1] if all(seed in other for _, other in lengths)]
    paired = [seed for seed in seeds if seed in losses]
    grid = np.geomspace(costs[0], costs[-1], POINTS)
    if len(paired) >= max(2, min(len(seeds), len(losses)) / 2):
        base = _between(costs, _table(lengths, paired), grid)
        mean, error, freedom = statistics.moments(np.array([losses[seed] for seed in paired]) - base.T)
    elif min(len(seeds), len(losses)) >= 2:
        base = _between(costs, _table(lengths, seeds), grid).T
        mean, error, freedom = statistics.welch(np.broadcast_to(list(losses.values()), (POINTS, len(losses))), base)
    else:
        return None
    low, high = statistics.interval(mean, error, freedom, corrections=corrections)
    return _crossings(grid / cost, mean, low, high)


def _table(lengths, seeds):
    return np.array([[losses[seed] for _, losses in lengths] for seed in seeds])


def _crossings(times, mean, low, high):
    """Returns the Gain by differences [G] from the baseline, and their intervals, at `times` [G] of the budget."""
    interval = _crossing(times, high)[0], _crossing(times, low)[1]
    if mean[0] > 0:
        return Gain(float(times[0]), '<', interval)
    if mean[-1] < 0:
        return Gain(float(times[-1]), '>', interval)
    return Gain(max(float(times[0]), _crossing(times, mean)[0]), '', interval)


def _crossing(times, values):
    """Returns where values [G] first and last rise through 0: (0, ...) if they begin above it, (..., inf) if they never
    do or end below it."""
    above = np.nonzero(values >= 0)[0]
    below = np.nonzero(values <= 0)[0]
    first = times[-1] if not len(above) else 0.0 if not above[0] else _root(times, values, above[0])
    last = (times[0] if not len(below) else math.inf if below[-1] == len(times) - 1
            else _root(times, values, below[-1] + 1))
    return float(first), float(last)


def _root(times, values, after):
    """Returns where values cross 0 between two points, interpolated in the logarithm of `times`."""
    share = values[after - 1] / (values[after - 1] - values[after]) if values[after - 1] != values[after] else 1.0
    return times[after - 1] * (times[after] / times[after - 1]) ** share


def _between(costs, losses, grid):
    """Returns the losses [S G] of seeds at costs [G], from those [S K] at ascending costs [K].

    The power law of the mean gives the bend between lengths; what a seed's losses differ from it is interpolated in the
    logarithm of the cost.
    """
    law = power_law(costs, losses.mean(0))
    at, on = law(costs), law(grid)
    return np.stack([on + np.interp(np.log(grid), np.log(costs), seed - at) for seed in losses])


def power_law(costs, losses):
    """Returns the function floor + scale * cost ** -power fitted by least squares to losses [K] at costs [K].

    Of two losses the power is POWER; where they do not fall, it is a constant.
    """
    powers = np.linspace(0.05, 1.5, 146) if len(costs) > 2 else np.array([POWER])
    unit = costs / costs[0]
    fits = []
    for power in powers:
        slope, floor = np.polyfit(unit ** -power, losses, 1)
        fits.append((np.sum((floor + slope * unit ** -power - losses) ** 2), slope, floor, power))
    _, slope, floor, power = min(fits)
    if slope <= 0:
        return lambda cost: np.zeros(np.shape(cost))
    return lambda cost: floor + slope * (np.asarray(cost) / costs[0]) ** -power
