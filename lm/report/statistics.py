"""Small-sample statistics over seeds: intervals, t-tests, equivalence, Holm's correction, power; pure numpy and scipy.

Samples are arrays [... n] of one number per seed; every function works over the leading axes at once.
"""
import functools
import itertools
import math

import numpy as np
from scipy import special

LEAST = 4  # fewer seeds have too few different resamples for a 95% interval
EXACT = 7  # up to so many seeds, all different resamples are enumerated instead of drawn
DRAWN = 4000  # resamples of more seeds
MOST = 1000  # seeds that a power analysis looks at
PLAIN = (0.0, 0.0)  # corrections of (below, above) of a test that needs none


def moments(x):
    """Returns (mean, standard error, degrees of freedom) of samples [... n], n >= 2, as in a paired t-test."""
    n = x.shape[-1]
    return x.mean(-1), x.std(-1, ddof=1) / math.sqrt(n), np.full(x.shape[:-1], n - 1.0)


def welch(x, y):
    """Returns (mean, standard error, degrees of freedom) of x - y by Welch, samples [... n] and [... m]."""
    parts = [z.var(-1, ddof=1) / z.shape[-1] for z in (x, y)]
    total = parts[0] + parts[1]
    spread = parts[0] ** 2 / (x.shape[-1] - 1) + parts[1] ** 2 / (y.shape[-1] - 1)
    freedom = np.divide(total ** 2, spread, out=np.full(np.shape(total), x.shape[-1] + y.shape[-1] - 2.0),
                        where=spread > 0)
    return x.mean(-1) - y.mean(-1), np.sqrt(total), freedom


def interval(mean, error, freedom, level=0.95, corrections=PLAIN):
    """Returns the (low, high) t interval of a mean that may lie too low, or too high, by `corrections`."""
    half = special.stdtrit(freedom, (1 + level) / 2) * error
    return mean - half - corrections[1], mean + half + corrections[0]


def p_below(mean, error, freedom, bound=0.0):
    """Returns the one-sided p of H0 'true mean >= bound'."""
    with np.errstate(divide='ignore', invalid='ignore'):
        t = np.where(np.equal(mean, bound), 0.0, np.divide(np.subtract(mean, bound), error))
    return special.stdtr(freedom, t)


def p_two_sided(mean, error, freedom, corrections=PLAIN):
    """Returns the two-sided p of H0 'true mean = 0', of a mean too low, or too high, by (below, above) `corrections`.
    """
    below, above = _one_sided(mean, error, freedom, 0.0, corrections)
    return np.minimum(1.0, 2 * np.minimum(below, above))


def p_equivalent(mean, error, freedom, margin, corrections=PLAIN):
    """Returns the p of H0 '|true mean| >= margin' by two one-sided tests, TOST (Schuirmann 1987)."""
    return np.maximum(*_one_sided(mean, error, freedom, margin, corrections))


def _one_sided(mean, error, freedom, bound, corrections):
    """Returns the p of H0 'true mean >= bound' and of H0 'true mean <= -bound'."""
    return tuple(p_below(sign * np.asarray(mean) + correction, error, freedom, bound)
                 for sign, correction in zip((1, -1), corrections, strict=True))


def holm(p):
    """Returns p-values [... m] adjusted for a family of m (Holm 1979), which bounds the family-wise error rate."""
    order = np.argsort(p, -1)
    m = p.shape[-1]
    stepped = np.maximum.accumulate(np.take_along_axis(p, order, -1) * np.arange(m, 0, -1), -1)
    adjusted = np.empty_like(stepped)
    np.put_along_axis(adjusted, order, np.minimum(stepped, 1.0), -1)
    return adjusted


def bootstrap(x, level=0.95):
    """Returns the (low, high) bootstrap-t interval of the mean of samples [... n], NaN for n below LEAST.

    Each resample is studentised by its own standard error. Percentile and BCa intervals are not, and with five seeds
    cover well under 90% (Efron and Tibshirani 1993, chapter 12).
    """
    n = x.shape[-1]
    mean, spread = x.mean(-1), x.std(-1, ddof=1)
    if n < LEAST:
        return np.full(mean.shape, np.nan), np.full(mean.shape, np.nan)
    counts, weights = _resamples(n)
    centred = x - mean[..., None]
    means = centred @ counts.T / n
    variances = np.maximum((centred ** 2) @ counts.T / n - means ** 2, 0) / (n - 1)
    with np.errstate(divide='ignore', invalid='ignore'):
        t = np.where(means == 0, 0.0, means / np.sqrt(variances))
    order = np.argsort(t, -1)
    t, below = np.take_along_axis(t, order, -1), np.cumsum(weights[order], -1)
    tails = [_quantile(t, below, q) for q in ((1 + level) / 2, (1 - level) / 2)]
    error = spread / math.sqrt(n)
    return tuple(mean - np.where(error > 0, tail, 0.0) * error for tail in tails)


def _quantile(sorted_values, below, q):
    index = np.minimum(np.sum(below < q - 1e-12, -1), sorted_values.shape[-1] - 1)
    return np.take_along_axis(sorted_values, index[..., None], -1)[..., 0]


@functools.cache
def _resamples(n):
    """Returns (counts of each of n values [R n], probability [R]) of R resamples, without those of one value only."""
    if n <= EXACT:
        counts = np.array([np.bincount(chosen, minlength=n)
                           for chosen in itertools.combinations_with_replacement(range(n), n)])
        ways = np.array([math.factorial(n) / math.prod(map(math.factorial, row)) for row in counts.tolist()])
    else:
        counts = np.random.default_rng(0).multinomial(n, [1 / n] * n, size=DRAWN)
        ways = np.ones(DRAWN)
    kept = counts.max(1) < n
    return counts[kept], ways[kept] / ways[kept].sum()


def effect_paired(x):
    """Returns d_z of paired differences x [n]: their mean in their standard deviations; NaN without spread."""
    spread = x.std(ddof=1)
    return float(x.mean() / spread) if spread > 0 else math.nan


def effect_unpaired(x, y):
    """Returns Hedges' g of groups x [n] and y [m] (Hedges 1981, the exact correction); NaN without spread."""
    freedom = len(x) + len(y) - 2
    spread = math.sqrt((x.var(ddof=1) * (len(x) - 1) + y.var(ddof=1) * (len(y) - 1)) / freedom)
    shrink = math.exp(math.lgamma(freedom / 2) - math.lgamma((freedom - 1) / 2)) / math.sqrt(freedom / 2)
    return float((x.mean() - y.mean()) / spread * shrink) if spread > 0 else math.nan


def skewness(x):
    """Returns the skewness of a sample [... n], 0 without spread."""
    centred = x - x.mean(-1, keepdims=True)
    spread = np.sqrt((centred ** 2).mean(-1))
    return np.divide((centred ** 3).mean(-1), spread ** 3, out=np.zeros_like(spread), where=spread > 0)


@functools.cache
def skewness_limit(n, level=0.01):
    """Returns the skewness that a normal sample of n exceeds, to either side, with probability `level`."""
    drawn = skewness(np.random.default_rng(0).normal(size=(20_000, n)))
    return float(np.quantile(np.abs(drawn), 1 - level))


def p_noisier(x, y):
    """Returns the one-sided p of H0 'x [n] varies no more than y [m]', by an F test."""
    variances = [float(np.var(z, ddof=1)) for z in (x, y)]
    if not variances[1]:
        return 0.0 if variances[0] else 1.0
    return float(special.fdtrc(len(x) - 1, len(y) - 1, variances[0] / variances[1]))


def outliers(groups, level=0.01):
    """Returns whether each value of each of groups [[n]] is an outlier of its group, [[n]]; none of groups below 3.

    A value's distance from the mean of the others is compared with the larger of their standard deviation and the
    median one of all groups, so that neither a noisy group nor one wild value is mistaken. At most `level` of families
    of normal groups have a false one.
    """
    several = [x for x in groups if len(x) > 1]
    freedom = sum(len(x) - 1 for x in several)
    middle = np.median([x.var(ddof=1) * (len(x) - 1) / special.chdtri(len(x) - 1, 0.5) for x in several]) \
        if len(several) > 2 else min((x.var(ddof=1) for x in several), default=0.0)
    limit = special.stdtrit(max(1, freedom - 1), 1 - level / 2 / max(1, sum(map(len, groups))))
    return [np.abs(_studentised(x, middle)) > limit if len(x) > 2 else np.zeros(len(x), bool) for x in groups]


def _studentised(x, variance):
    """Returns the distance of each value of x [n] from the mean of the others in standard errors, whose square is at
    least `variance`."""
    n, centred = len(x), x - x.mean()
    others = np.maximum(((centred ** 2).sum() - centred ** 2 * n / (n - 1)) / (n - 2), 0)
    with np.errstate(divide='ignore', invalid='ignore'):
        return np.nan_to_num(centred * n / (n - 1) / np.sqrt(np.maximum(others, variance) * n / (n - 1)))


def seeds_to_differ(mean, spread, alpha, power=0.8, lag=0.0):
    """Returns the seeds a two-sided paired t-test needs to detect a true `mean` with that power, MOST + 1 if more.

    lag: standard errors that a correction of the test takes off.
    """
    return _first(lambda n: _power_to_differ(mean / spread, n, alpha, lag) >= power)


def seeds_to_equal(means, spread, alpha, power=0.8, lag=0.0):
    """Returns the seeds TOST needs to show with that power that a true mean is within a margin, MOST + 1 if more.

    means: (true mean, margin).
    """
    mean, margin = means
    if abs(mean) >= margin:
        return MOST + 1
    return _first(lambda n: _power_to_equal((mean / spread, margin / spread), n, alpha, lag) >= power)


def _first(enough):
    """Returns the least n in [2, MOST + 1] that is enough, by bisection: more than enough is enough too."""
    low, high = 2, MOST + 1
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle + 1, high)
    return low


def _power_to_differ(d, n, alpha, lag):
    return _power(n, 1 - alpha / 2, lambda half: special.ndtr(abs(d) * math.sqrt(n) - half - lag)
                  + special.ndtr(-abs(d) * math.sqrt(n) - half - lag))


def _power_to_equal(means, n, alpha, lag):
    d, margin = means
    return _power(n, 1 - alpha, lambda half: np.maximum(0, special.ndtr((margin - d) * math.sqrt(n) - half - lag)
                                                        - special.ndtr(half + lag - (margin + d) * math.sqrt(n))))


def _power(n, quantile, conditional):
    """Returns the power of a test of n seeds: the mean over their sample standard deviation of the power given that.

    conditional: half-width of the t interval, in standard errors -> power.
    """
    return float(np.mean(conditional(special.stdtrit(n - 1, quantile) * _deviations(n))))


@functools.cache
def _deviations(n):
    """Returns 1,000 even quantiles of the sample standard deviation of n standard normal values."""
    shares = (np.arange(1000) + 0.5) / 1000
    return np.sqrt(special.chdtri(n - 1, 1 - shares) / (n - 1))
