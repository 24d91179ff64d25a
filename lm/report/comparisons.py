"""Variants against the baseline over seeds: differences with intervals, Holm-adjusted p-values and verdicts."""
import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from lm.report import statistics

ALPHA = 0.05
BETTER, WORSE, UNDECIDED = 'better', 'worse', 'undecided'


class Score(NamedTuple):
    """A variant's losses by seed, {seed: loss}, at its best learning rate.

    notes: why no verdict can be given yet: failed or early-stopped runs, or a best rate on the edge of its grid, for
    which `add` has the rates to try next. tried: number of rates that the best was chosen from.
    """

    losses: dict
    rate: float | None = None
    notes: tuple = ()
    add: tuple = ()
    tried: int = 1

    @property
    def mean(self):
        """The mean loss; infinite without one."""
        return float(np.mean(list(self.losses.values()))) if self.losses else math.inf


@dataclass(frozen=True)
class Comparison:
    """A variant's loss minus the baseline's over seeds: below 0 is better.

    interval (t) and bootstrap: 95% confidence intervals. error: standard error of the difference, with `freedom`
    degrees of freedom. effect: Hedges' g. p and the verdict are Holm-adjusted over the family. withheld: no verdict is
    given, for the reasons in the notes of its Scores. seeds_needed: additional seeds for power 0.8 if the true
    difference is the measured one. penalties: factors on the one-sided p of (below, above), Bonferroni's bound for
    the best of several rates, which is lower by chance alone.
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
    penalties: tuple = statistics.EVEN
    p: float = math.nan
    p_equivalent: float = math.nan
    verdict: str = UNDECIDED
    seeds_needed: int | None = None
    notes: tuple = ()


def score(variant, value):
    """Returns the Score of a Variant over its finished trials. value: trial -> loss, NaN for none.

    The best rate is the one with the lowest mean over the seeds compared. Choosing it on held-out seeds was tried: the
    seeds are then no longer independent, and up to 18% of equal variants were called different.
    """
    table = {rate: {t.seed: loss for t in trials if t.state == 'finished' and not math.isnan(loss := value(t))}
             for rate, trials in variant.rates.items()}
    failed = {rate: sum(t.state == 'failed' for t in trials) for rate, trials in variant.rates.items()}
    whole = {rate: losses for rate, losses in table.items() if losses and not failed[rate]}
    if not whole:
        rate, count = max(table, key=lambda rate: len(table[rate])), sum(failed.values())
        return Score(table[rate], rate, (f'{count} of {len(variant.trials)} runs failed',) if count else ())
    most = max(map(len, whole.values()))
    means = {rate: float(np.mean(list(losses.values()))) for rate, losses in whole.items() if len(losses) == most}
    best = min(means, key=means.get)
    notes, add = _edge(list(table), best)
    stopped = sum(trial.state == 'stopped' for trial in variant.rates[best])
    if stopped:
        notes = (*notes, f'{stopped} runs were stopped early, so that the others are no fair sample of seeds')
    return Score(whole[best], best, notes, add, len(table))


def _edge(rates, best):
    """Returns (notes, rates to try next) if the best rate is the lowest or the highest of several, else ((), ())."""
    if len(rates) < 2:
        return (), ()
    ratio = rates[1] / rates[0] if best == rates[0] else rates[-1] / rates[-2]
    if best == rates[0] and best > 0:
        side, add = 'lowest', (best / ratio, best / ratio ** 2)
    elif best == rates[-1]:
        side, add = 'highest', (best * ratio, best * ratio ** 2)
    else:
        return (), ()
    return (f'the best rate, {best:.4g}, is the {side} tried: add {" and ".join(f"{rate:.2g}" for rate in add)}',), add


def compare(name, ours, base):
    """Returns the Comparison of two Scores, not judged yet; None with fewer than two seeds in either."""
    shared = [seed for seed in ours.losses if seed in base.losses]
    smaller = min(len(ours.losses), len(base.losses))
    if smaller < 2:
        return None
    x, y = (np.array(list(s.losses.values())) for s in (ours, base))
    if len(shared) >= max(2, smaller / 2):
        a, b = (np.array([s.losses[seed] for seed in shared]) for s in (ours, base))
        moments, spread = statistics.moments(a - b), float(np.std(a - b, ddof=1))
        bootstrap = statistics.bootstrap(a - b)
    else:
        shared, moments = [], statistics.welch(x, y)
        spread = math.sqrt((x.var(ddof=1) + y.var(ddof=1)) / 2)
        bootstrap = (math.nan, math.nan)
    mean, error, freedom = map(float, moments)
    penalties = tuple(max(1.0, ratio) for ratio in (ours.tried / base.tried, base.tried / ours.tried))
    notes = []
    if ours.tried != base.tried:
        notes.append(f'{ours.tried} rates tried, {base.tried} of the baseline: the best of more is lower by chance, so '
                     f'p is multiplied by {max(penalties):.2g} in that direction; the intervals are not corrected')
    if 0 < len(shared) < max(len(x), len(y)):
        notes.append(f'paired over the {len(shared)} seeds that both have')
    if not shared:
        notes.append("seeds do not match: Welch's unpaired t-test")
    return Comparison(
        name=name, seeds=len(shared) or smaller, paired=bool(shared), withheld=bool(ours.notes or base.notes),
        mean=float(x.mean()), spread=float(x.std(ddof=1)), difference=mean, error=error, freedom=freedom,
        interval=tuple(map(float, statistics.interval(mean, error, freedom))), bootstrap=tuple(map(float, bootstrap)),
        effect=statistics.effect(mean, spread, freedom),
        p_raw=float(statistics.p_two_sided(mean, error, freedom, penalties)), penalties=penalties, notes=tuple(notes))


def judge(compared, margin):
    """Returns the Comparisons of one family with Holm-adjusted p and verdicts.

    A difference is claimed at p < ALPHA, equivalence ('no difference larger than' the margin) by two one-sided tests
    (TOST) at ALPHA; each kind of claim has a family-wise error rate of ALPHA.
    """
    if not compared:
        return []
    ps = statistics.holm(np.array([c.p_raw for c in compared]))
    equal = statistics.holm(np.array([statistics.p_equivalent(c.difference, c.error, c.freedom, margin, c.penalties)
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
    return f'no difference larger than {margin:.2g}' if p_equivalent < ALPHA else UNDECIDED


def _seeds_needed(c, margin, family):
    """Returns the additional seeds for power 0.8 at the strictest of Holm's levels, statistics.MOST at most."""
    spread = c.error * math.sqrt(c.seeds)
    if not spread:
        return 1
    level = ALPHA / family / max(c.penalties)
    needed = min(statistics.seeds_to_differ(c.difference, spread, level),
                 statistics.seeds_to_equal(c.difference, spread, margin, level))
    return min(max(1, needed - c.seeds), statistics.MOST)


def noise(base):
    """Returns the noise floor: the standard deviation of a Score over its seeds, NaN with fewer than two."""
    return float(np.std(list(base.losses.values()), ddof=1)) if len(base.losses) > 1 else math.nan
