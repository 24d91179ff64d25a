"""A variant's losses at its best learning rate, and why no verdict can rest on them yet."""
import collections
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from lm.report import selection, statistics

DOUBLE = 2.0  # the next rate above the highest of two, of which the other is 0


class Score(NamedTuple):
    """A variant's losses by seed, {seed: loss}, at its best learning rate.

    notes: why no verdict can be given yet: runs missing where they could change it, or a best rate on the edge of its
    grid, for which `add` has the rates to try next. optimism: (least, most) that the choice of the rate is expected to
    have lowered the mean by. outliers: {seed: run} of losses far from those of all other seeds.
    """

    losses: dict
    rate: float | None = None
    notes: tuple = ()
    add: tuple = ()
    optimism: tuple = (0.0, 0.0)
    outliers: Mapping = MappingProxyType({})

    @property
    def mean(self):
        """The mean loss; infinite without one."""
        return float(np.mean(list(self.losses.values()))) if self.losses else math.inf

    @property
    def spread(self):
        """The standard deviation over its seeds, NaN with fewer than two."""
        return float(np.std(list(self.losses.values()), ddof=1)) if len(self.losses) > 1 else math.nan

    @property
    def usual(self):
        """Its losses without outliers; their standard deviation is the noise floor."""
        return self._replace(losses={seed: loss for seed, loss in self.losses.items() if seed not in self.outliers})


def score(variant, value):
    """Returns the Score of a Variant over its finished trials. value: trial -> loss, NaN for none.

    The best rate has the lowest mean, adjusted for seeds where runs are missing. Where a run is missing at a rate that
    could be the best, no verdict is given: runs seldom go missing at random.
    """
    groups = variant.rates
    table = {rate: {t.seed: loss for t in trials if t.state == 'finished' and not math.isnan(loss := value(t))}
             for rate, trials in groups.items()}
    rates, seeds = list(table), sorted({seed for losses in table.values() for seed in losses})
    if not seeds:
        return Score({}, rates[0], _missing(groups, rates, table))
    losses = np.array([[table[rate].get(seed, math.nan) for seed in seeds] for rate in rates])
    best = int(np.argmin(selection.adjusted_means(losses)))
    usual = _without_outliers(losses)
    kept = selection.contenders(usual, int(np.argmin(selection.adjusted_means(usual))))
    close = [rate for rate, near in zip(rates, kept, strict=True)
             if near and (table[rate] or any(trial.state in ('unfinished', 'damaged') for trial in groups[rate]))]
    notes, add = _edge(rates, rates[best])
    outlying = [trial for rate, row in zip(rates, usual, strict=True) if rate in close and rate != rates[best]
                for trial in groups[rate] if trial.seed in table[rate] and math.isnan(row[seeds.index(trial.seed)])]
    notes += tuple(f'no verdict: {trial.name} ended at {value(trial):.4g}, far from the other seeds of its rate, which '
                   'could be the best without it; see why, or add seeds' for trial in outlying)
    return Score(table[rates[best]], rates[best], (*notes, *_missing(groups, close, table)), add,
                 selection.optimism(usual, best))


def _without_outliers(losses):
    """Returns losses [R S] with NaN for outliers among the seeds of their rate, where several rates were tried."""
    if len(losses) < 2:
        return losses
    present = np.isfinite(losses)
    flags = statistics.outliers([row[there] for row, there in zip(losses, present, strict=True)])
    usual = losses.copy()
    for row, there, far in zip(usual, present, flags, strict=True):
        row[np.nonzero(there)[0][far]] = np.nan
    return usual


def _missing(groups, close, table):
    """Returns notes on the runs without a loss at rates that could be best: begun ones, and seeds most rates have.

    groups: {rate: [Trial]}. table: {rate: {seed: loss}}.
    """
    present = {rate: {trial.seed for trial in trials} for rate, trials in groups.items()}
    counts = collections.Counter(seed for seeds in present.values() for seed in seeds)
    usual = sorted(seed for seed, count in counts.items() if 2 * count >= len(groups))
    lacking = {rate: [trial for trial in groups[rate] if trial.seed not in table[rate]] for rate in close}
    stopped = {rate: sum(trial.state == 'stopped' for trial in trials) for rate, trials in lacking.items()}
    runs = {rate: [*(f'{trial.name} ({trial.state}: {trial.why})' for trial in trials if trial.state != 'stopped'),
                   *(f'a run of seed {"/".join(map(str, seed))}' for seed in usual if seed not in present[rate])]
            for rate, trials in lacking.items()}
    notes, where = [], '' if None in groups else ', where the best rate may lie'
    if count := sum(stopped.values()):
        listed = ', '.join(f'{some} run{"s" * (some > 1)}{_at(rate)}' for rate, some in stopped.items() if some)
        notes.append(f'no verdict: {listed} {"were" if count > 1 else "was"} stopped early{where}, so that the others '
                     'are no fair sample of seeds')
    if count := sum(map(len, runs.values())):
        listed = ', '.join(f'{some[0]}{f" and {len(some) - 1} more" * (len(some) > 1)}{_at(rate)}'
                           for rate, some in runs.items() if some)
        damaged = {trial.state for trials in lacking.values() for trial in trials} == {'damaged'}
        notes.append(f'no verdict: {listed} {"are" if count > 1 else "is"} missing{where}; '
                     f'{"mend" if damaged else "finish"} {"them" if count > 1 else "it"}')
    return tuple(notes)


def _at(rate):
    return '' if rate is None else f' at the rate {rate:.4g}'


def _edge(rates, best):
    """Returns (notes, rates to try next) if the best rate is the lowest or the highest of several, else ((), ())."""
    if len(rates) < 2 or not best:
        return (), ()
    if best == rates[0]:
        ratio = rates[1] / rates[0]
        side, add = 'lowest', (best / ratio, best / ratio ** 2)
    elif best == rates[-1]:
        ratio = rates[-1] / rates[-2] if rates[-2] else DOUBLE
        side, add = 'highest', (best * ratio, best * ratio ** 2)
    else:
        return (), ()
    return (f'the best rate, {best:.4g}, is the {side} tried: add {" and ".join(f"{rate:.2g}" for rate in add)}',), add
