"""The best of several learning rates, from losses [R S] of rates and seeds: which could be best, and how much a choice
by the lowest mean flatters; pure numpy and scipy.

Losses are NaN where a run is missing. Choosing the rate on held-out seeds was tried: the seeds are then no longer
independent, and up to 18% of equal variants were called different.
"""
import functools

import numpy as np
from scipy import special

from lm.report import statistics

LEVEL = 0.01  # a rate is out of the question where it is worse than the best at this one-sided p
PRIOR = 4.0  # degrees of freedom that the median variance of all rates counts for beside the variance of one
SURE = 0.75  # of the least optimism, what is counted: means of a flat curve lie further apart than its true losses
GRID = np.linspace(-6, 6, 121)  # standard deviations at which the distribution of a minimum is summed


def adjusted_means(losses):
    """Returns the mean loss [R] of each rate over all seeds, as fitted by rate + seed where runs are missing.

    A plain mean over the seeds that a rate has favours the rate whose seeds are the lucky ones.
    """
    present = np.isfinite(losses)
    if present.all():
        return losses.mean(1)
    rows, columns = np.nonzero(present)
    design = np.zeros((len(rows), sum(losses.shape)))
    design[np.arange(len(rows)), rows] = 1
    design[np.arange(len(rows)), len(losses) + columns] = 1
    fitted = np.linalg.lstsq(design, losses[present], rcond=None)[0]
    means = fitted[:len(losses)] + fitted[len(losses):].mean()
    return np.where(present.any(1), means, np.inf)


def differences(losses, best):
    """Returns (mean [R], variance [R], degrees of freedom [R], pairs [R]) of each rate's losses minus the best rate's.

    The variance is that of one pair of runs with the same seed, drawn towards the median of all rates (Smyth 2004), so
    that a diverged run at one rate changes no other; NaN where no rate has two pairs.
    """
    pairs = losses - losses[best]
    count = np.isfinite(pairs).sum(1)
    mean = np.divide(np.nansum(pairs, 1), count, out=np.zeros(len(losses)), where=count > 0)
    own = np.divide(np.nansum((pairs - mean[:, None]) ** 2, 1), count - 1, out=np.zeros(len(losses)), where=count > 1)
    several = (count > 1) & (np.arange(len(losses)) != best)
    if not several.any():
        return mean, np.full(len(losses), np.nan), np.zeros(len(losses)), count
    middle = np.median(own[several] * (count - 1)[several] / special.chdtri((count - 1)[several], 0.5))
    freedom = np.maximum(count - 1, 0)
    prior = np.minimum(PRIOR, (freedom[several].sum() - freedom) * (several.sum() > 1))
    total = np.maximum(prior + freedom, 1e-9)
    return mean, (prior * middle + freedom * own) / total, prior + freedom, count


def contenders(losses, best):
    """Returns whether each rate [R] could be best: no worse than `best` at LEVEL, or without runs to tell by."""
    mean, variance, freedom, count = differences(losses, best)
    known = (count > 0) & (freedom > 0)
    error = np.sqrt(variance / np.maximum(count, 1))
    p = statistics.p_below(-mean, error, np.maximum(freedom, 1))
    return ~known | ~(p < LEVEL)


def optimism(losses, best):
    """Returns (least, most): by how much the best rate's mean is expected to lie below its true loss, being chosen.

    least: SURE of what it were if the measured means were the true ones. most: as if all contenders were equally good.
    A difference of two variants is corrected by the most of one less the least of the other: of equal variants at most
    2.8% are then called better for a flat curve, not 8 to 19%.
    """
    close = contenders(losses, best) & np.isfinite(losses).any(1)
    mean, variance, _, count = differences(losses, best)
    rivals = close & (np.arange(len(losses)) != best) & (count > 0)
    if not rivals.any() or np.isnan(variance).any():
        return 0.0, 0.0
    spread = np.sqrt(variance[rivals].mean() / 2 / count[best])
    if not spread:
        return 0.0, 0.0
    means = np.minimum(mean[rivals | (np.arange(len(losses)) == best)] / spread, 30)
    above = special.ndtr(means[:, None] - GRID).prod(0)  # probability that the minimum lies above a point of the grid
    least = -(GRID[0] + np.trapezoid(above, GRID))
    most = _expected(int(close.sum()))
    return float(SURE * np.clip(least, 0, most) * spread), float(most * spread)


@functools.cache
def _expected(count):
    """Returns the expected maximum of `count` standard normal values."""
    return float(-GRID[0] - np.trapezoid(special.ndtr(-GRID) ** count, GRID))
