"""Variants against the baseline over seeds: differences with intervals, Holm-adjusted p-values and verdicts."""
import math
from dataclasses import dataclass, replace

import numpy as np

from lm.report import statistics

ALPHA = 0.05
UNLIKE = 0.01  # level at which a variant is noted to be noisier or more skewed than the baseline
LEAST = 5  # fewer seeds show no skewness
BETTER, WORSE, UNDECIDED = 'better', 'worse', 'undecided'


@dataclass(frozen=True)
class Comparison:
    """A variant's loss minus the baseline's over seeds: below 0 is better.

    interval (t) and bootstrap: 95% confidence intervals. error: standard error of the difference, with `freedom`
    degrees of freedom. effect: d_z, the mean of the paired differences in their standard deviations (Hedges' g where
    unpaired). p and the verdict are Holm-adjusted over the family. withheld: no verdict is given, for the reasons in
    the notes of its Scores. seeds_needed: additional seeds for power 0.8 if the true difference is the measured one.
    corrections: how far the difference may lie (too low, too high), because each variant is compared at the rate that
    did best; p and the intervals contain them.
    """

    name: str
    seeds: int
    paired: bool
    withheld: bool
    mean: float
    spread: float
    difference: float
    error: float
    freedom: float
    interval: tuple
    bootstrap: tuple
    effect: float
    p_raw: float
    corrections: tuple = statistics.PLAIN
    p: float = math.nan
    p_equivalent: float = math.nan
    verdict: str = UNDECIDED
    seeds_needed: int | None = None
    notes: tuple = ()


def compare(name, ours, base):
    """Returns the Comparison of two Scores, not judged yet; None with fewer than two seeds in either."""
    shared = [seed for seed in ours.losses if seed in base.losses]
    smaller = min(len(ours.losses), len(base.losses))
    if smaller < 2:
        return None
    x, y = (np.array(list(s.losses.values())) for s in (ours, base))
    if len(shared) >= max(2, smaller / 2):
        a, b = (np.array([s.losses[seed] for seed in shared]) for s in (ours, base))
        moments, effect = statistics.moments(a - b), statistics.effect_paired(a - b)
        bootstrap = statistics.bootstrap(a - b)
    else:
        shared, moments, effect = [], statistics.welch(x, y), statistics.effect_unpaired(x, y)
        bootstrap = (math.nan, math.nan)
    mean, error, freedom = map(float, moments)
    below, above = corrections = correct(ours.optimism, base.optimism)
    notes = []
    if 0 < len(shared) < max(len(x), len(y)):
        notes.append(f'paired over the {len(shared)} seeds that both have')
    if not shared:
        notes.append("seeds do not match: Welch's unpaired t-test")
    return Comparison(
        name=name, seeds=len(shared) or smaller, paired=bool(shared), withheld=bool(ours.notes or base.notes),
        mean=float(x.mean()), spread=float(x.std(ddof=1)), difference=mean, error=error, freedom=freedom,
        interval=tuple(map(float, statistics.interval(mean, error, freedom, corrections=corrections))),
        bootstrap=(float(bootstrap[0]) - above, float(bootstrap[1]) + below),
        effect=effect, p_raw=float(statistics.p_two_sided(mean, error, freedom, corrections)), corrections=corrections,
        notes=(*notes, *_shape(*(np.array(list(s.usual.losses.values())) for s in (ours, base)))))


def correct(ours, base):
    """Returns by how much a difference may lie (too low, too high), by the (least, most) optimism of its sides."""
    return max(0.0, ours[1] - base[0]), max(0.0, base[1] - ours[0])


def _shape(x, y):
    """Returns notes on losses x [n] that vary more over seeds, or are more skewed, than the baseline's y [m]."""
    notes = []
    if min(len(x), len(y)) < 2:
        return notes
    if statistics.p_noisier(x, y) < UNLIKE:
        ratio = f'{x.std(ddof=1) / y.std(ddof=1):.2g} times' if y.std(ddof=1) else 'infinitely many times'
        notes.append(f'its losses vary {ratio} as much over seeds as those of the baseline')
    skews = [float(statistics.skewness(z)) for z in (x, y)]
    if len(x) >= LEAST and abs(skews[0]) > max(abs(skews[1]), statistics.skewness_limit(len(x), UNLIKE)):
        notes.append(f'its losses are skewed over seeds (skewness {skews[0]:+.1f}, of the baseline {skews[1]:+.1f}): '
                     'the t interval may cover less than 95%')
    return notes


def judge(compared, margin):
    """Returns the Comparisons of one family with Holm-adjusted p and verdicts.

    A difference is claimed at p < ALPHA, equivalence ('no difference larger than' the margin) by two one-sided tests
    (TOST) at ALPHA; each kind of claim has a family-wise error rate of ALPHA.
    """
    if not compared:
        return []
    ps = statistics.holm(np.array([c.p_raw for c in compared]))
    equal = statistics.holm(np.array([statistics.p_equivalent(c.difference, c.error, c.freedom, margin, c.corrections)
                                      for c in compared], float))
    judged = []
    for c, p, q in zip(compared, ps.tolist(), equal.tolist(), strict=True):
        verdict = UNDECIDED if c.withheld else _verdict(c.difference, p, q, margin)
        needed = _seeds_needed(c, margin, len(compared)) if verdict == UNDECIDED and not c.withheld else None
        judged.append(replace(c, p=p, p_equivalent=q, verdict=verdict, seeds_needed=needed))
    return judged


def _verdict(difference, p, p_equivalent, margin):
    if p < ALPHA:
        return BETTER if difference < 0 else WORSE
    return f'no difference larger than {rounded_up(margin)}' if p_equivalent < ALPHA else UNDECIDED


def _seeds_needed(c, margin, family):
    """Returns the additional seeds for power 0.8 at the strictest of Holm's levels, statistics.MOST at most."""
    spread = c.error * math.sqrt(c.seeds)
    if not spread:
        return 1
    level, lag = ALPHA / family, max(c.corrections) / c.error
    needed = min(statistics.seeds_to_differ(c.difference, spread, level, lag=lag),
                 statistics.seeds_to_equal((c.difference, margin), spread, level, lag=lag))
    return min(max(1, needed - c.seeds), statistics.MOST)


def rounded_up(size):
    """Returns a size of a difference as text of two digits, never less than it is."""
    text = f'{size:.2g}'
    return text if float(text) >= size else f'{float(text) + 10.0 ** (math.floor(math.log10(size)) - 1):.2g}'
