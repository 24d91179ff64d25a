"""Variants against the baseline over seeds: each difference with its intervals, its p in its family, and a verdict."""
import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from lm.report import statistics

ALPHA = 0.05
BETTER, WORSE, UNDECIDED = 'better', 'worse', 'undecided'


class Score(NamedTuple):
    """A variant's losses by seed, {seed: loss}, at the rate it does best with.

    notes: what must be mended before it may win or lose: runs that failed or that a rule stopped, or a best rate on the
    edge of its grid, for which `add` holds the rates to try. tried: how many rates it was chosen from.
    """

    losses: dict
    rate: float | None = None
    notes: tuple = ()
    add: tuple = ()
    tried: int = 1

    @property
    def mean(self):
        """The mean loss, infinite where there is none."""
        return float(np.mean(list(self.losses.values()))) if self.losses else math.inf


@dataclass(frozen=True)
class Comparison:
    """A variant's loss minus the baseline's over seeds: below 0 is better.

    interval and bootstrap hold the true difference in 95 of 100 cases. p is adjusted by Holm over the family, as is the
    verdict. held: no verdict is given, for the reason in the notes of its Scores. effect: Hedges' g. more: seeds that
    would settle it with power 0.8 if the difference is what it seems. penalties: what the one-sided p of (below, above)
    are multiplied by, as the best of more rates is lower by chance alone: Bonferroni's bound on that.
    """

    name: str
    seeds: int
    paired: bool
    held: bool
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
    more: int | None = None
    notes: tuple = ()


def score(variant, value):
    """Returns the Score of a Variant by value(trial) -> loss, NaN where there is none, over its finished trials.

    The rate is the one with the least mean: choosing it on other seeds than those compared was tried, and its tests
    called up to 18% of equal variants different, as their seeds are no longer independent.
    """
    table = {rate: {t.seed: loss for t in trials if t.state == 'finished' and not math.isnan(loss := value(t))}
             for rate, trials in variant.rates.items()}
    broken = {rate: sum(t.state == 'failed' for t in trials) for rate, trials in variant.rates.items()}
    tried = {rate: losses for rate, losses in table.items() if losses and not broken[rate]}
    if not tried:
        rate = max(table, key=lambda rate: len(table[rate]))
        failed = sum(broken.values())
        return Score(table[rate], rate, (f'{failed} of {len(variant.trials)} runs failed',) if failed else ())
    most = max(map(len, tried.values()))
    means = {rate: float(np.mean(list(losses.values()))) for rate, losses in tried.items() if len(losses) == most}
    best = min(means, key=means.get)
    notes, add = _edge(list(table), best)
    stopped = sum(trial.state == 'stopped' for trial in variant.rates[best])
    if stopped:
        notes = (*notes, f'{stopped} runs were stopped early: those left are no fair sample of seeds')
    return Score(tried[best], best, notes, add, len(table))


def _edge(rates, best):
    """Returns (notes, the rates to add) where the best of several is the first or the last that was tried."""
    if len(rates) < 2:
        return (), ()
    ratio = rates[1] / rates[0] if best == rates[0] else rates[-1] / rates[-2]
    if best == rates[0] and best > 0:
        side, add = 'lowest', (best / ratio, best / ratio ** 2)
    elif best == rates[-1]:
        side, add = 'highest', (best * ratio, best * ratio ** 2)
    else:
        return (), ()
    shown = ' and '.join(f'{rate:.2g}' for rate in add)
    return (f'the best rate, {best:.4g}, is the {side} tried: add {shown}',), add


def compare(name, ours, base):
    """Returns the Comparison of two Scores before its family is known, or None with fewer than two seeds in either."""
    shared = [seed for seed in ours.losses if seed in base.losses]
    smaller = min(len(ours.losses), len(base.losses))
    if smaller < 2:
        return None
    x, y = (np.array(list(s.losses.values())) for s in (ours, base))
    if len(shared) >= max(2, smaller / 2):
        a, b = (np.array([s.losses[seed] for seed in shared]) for s in (ours, base))
        found, differences, spread = statistics.moments(a - b), a - b, float(np.std(a - b, ddof=1))
        bootstrap = statistics.bootstrap(differences)
    else:
        shared, found = [], statistics.welch(x, y)
        spread = math.sqrt((x.var(ddof=1) + y.var(ddof=1)) / 2)
        bootstrap = (math.nan, math.nan)
    mean, error, freedom = map(float, found)
    penalties = tuple(max(1.0, ratio) for ratio in (ours.tried / base.tried, base.tried / ours.tried))
    notes = (*(() if ours.tried == base.tried else
               (f'{ours.tried} rates tried, {base.tried} of the baseline: more of them flatter, so that p is '
                f'{max(penalties):.2g} times as large, to whose favour that is; the intervals leave it out',)),
             *((f'paired over the {len(shared)} seeds that both have',)
               if 0 < len(shared) < max(len(x), len(y)) else ()),
             *(() if shared else ("seeds do not match: Welch's test, unpaired",)))
    return Comparison(name, len(shared) or smaller, bool(shared),
                      bool(ours.notes or base.notes), float(x.mean()), float(x.std(ddof=1)), mean, error,
                      freedom, tuple(map(float, statistics.interval(mean, error, freedom))),
                      tuple(map(float, bootstrap)), statistics.effect(mean, spread, freedom),
                      float(statistics.p_two_sided(mean, error, freedom, penalties)), penalties, notes=notes)


def judge(compared, margin):
    """Returns the Comparisons of one family with p adjusted and verdicts given; those that are held stay undecided.

    A difference is claimed at p < ALPHA, and 'no difference larger than' the margin where two one-sided tests agree: of
    each kind of claim, at least one is false in at most ALPHA of families.
    """
    if not compared:
        return []
    ps = statistics.holm(np.array([c.p_raw for c in compared]))
    equal = statistics.holm(np.array([statistics.p_equivalent(c.difference, c.error, c.freedom, margin, c.penalties)
                                      for c in compared], float))
    judged = []
    for c, p, q in zip(compared, ps.tolist(), equal.tolist(), strict=True):
        verdict = UNDECIDED if c.held else _verdict(c.difference, p, q, margin)
        more = _more(c, margin, len(compared)) if verdict == UNDECIDED and not c.held else None
        judged.append(replace(c, p=p, p_equivalent=q, verdict=verdict, more=more))
    return judged


def _verdict(difference, p, p_equivalent, margin):
    if p < ALPHA:
        return BETTER if difference < 0 else WORSE
    return f'no difference larger than {margin:.2g}' if p_equivalent < ALPHA else UNDECIDED


def _more(c, margin, family):
    """Returns how many seeds to add, the family's strictest level assumed; MOST where that is not enough."""
    spread = c.error * math.sqrt(c.seeds)
    if not spread:
        return 1
    level = ALPHA / family / max(c.penalties)
    needed = min(statistics.seeds_to_differ(c.difference, spread, level),
                 statistics.seeds_to_equal(c.difference, spread, margin, level))
    return min(max(1, needed - c.seeds), statistics.MOST)


def noise(base):
    """Returns the standard deviation of a Score over its seeds, NaN with fewer than two: the noise floor."""
    return float(np.std(list(base.losses.values()), ddof=1)) if len(base.losses) > 1 else math.nan
