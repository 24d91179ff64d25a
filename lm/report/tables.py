"""The variants compared with the baseline along one axis, each at the budget that both have reached."""
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from lm.report import comparisons, costs, curves, gains, statistics
from lm.report.readings import Readings, used

UNKNOWN = {'tokens': 'no loss recorded at this many tokens; set a smaller cadence.eval',
           'flops': 'no loss recorded at this many FLOPs, or FLOPs per token unknown; set a smaller cadence.eval',
           'seconds': 'no loss recorded after this many seconds, or no speed; set a smaller cadence.eval'}


class Family(NamedTuple):
    """All comparisons with the baseline along an axis (tokens, flops or seconds).

    scores: {variant: Score} at the cost in `budgets`, {variant: cost}; `budget` is that of the baseline. compared:
    [Comparison]. gains: {variant: Gain}. why: why it cannot be judged, or ''. lengths: names of the variants that are
    the baseline at another length. rises: whether its final losses rise with its length, so that there is no gain.
    cuts: {variant: that it, or the baseline, is read before its end}. remarks: [(variant, text)] on outliers.
    """

    axis: str
    budget: float
    scores: dict
    compared: list
    gains: dict
    why: str = ''
    budgets: Mapping = MappingProxyType({})
    lengths: tuple = ()
    rises: bool = False
    cuts: Mapping = MappingProxyType({})
    remarks: tuple = ()


class Table(NamedTuple):
    """The variants, the baseline first; those of them that are the baseline at other lengths; the metric; and
    {costs.key: training FLOPs per token} where those differ."""

    variants: list
    lengths: list
    metric: str
    flops: dict

    @property
    def rivals(self):
        """The variants that are compared with the baseline."""
        return [variant for variant in self.variants[1:] if variant not in self.lengths]

    def ranked(self):
        """Returns the Table with the other variants sorted by their difference at equal tokens, other lengths last."""
        readings, base = self.readings('tokens'), self.variants[0]
        pairs = [readings.pair(variant, [base, *self.lengths]) for variant in self.rivals]
        ranks = {id(pair.ours): pair.score.mean - pair.base_score.mean if pair.base_score.losses else math.inf
                 for pair in pairs}
        return self._replace(variants=[base, *sorted(self.rivals, key=lambda v: ranks[id(v)]), *self.lengths])

    def cost(self, trial):
        """Returns a trial's training FLOPs per token, 1 where all are alike, NaN if unknown."""
        return self.flops.get(costs.key(trial.settings), math.nan) if self.flops else 1.0

    def curve(self, trial, axis, name):
        """Returns (cost [n], value [n]) of a metric of a trial, without values that are not finite."""
        steps, values = trial.series(name)
        x = curves.axis(trial, steps, axis, self.cost(trial))
        kept = np.isfinite(values)
        return x[kept], values[kept]

    def readings(self, axis, name=''):
        """Returns the Readings of a metric along an axis."""
        return Readings(axis, {id(trial): self.curve(trial, axis, name or self.metric)
                               for variant in self.variants for trial in variant.finished})

    def values(self, family):
        """Returns value(trial) -> the metric at the budget at which a Family compares the trial's variant."""
        readings = self.readings(family.axis)
        known = {id(trial): readings.value(trial, family.budgets[variant.name])
                 for variant in self.variants for trial in variant.finished}
        return lambda trial: known[id(trial)]

    def compare(self, left, right):
        """Returns the Pair of two variants at equal tokens, the baseline at the length of the other, and its
        Comparison."""
        readings, base = self.readings('tokens'), self.variants[0]
        if left is base:
            left = readings.pair(right, [base, *self.lengths]).base
        pair = readings.pair(left, [base, *self.lengths] if right is base else [right])
        return pair, readings.compared(pair, right)

    def family(self, axis, name=''):
        """Returns the Family of a metric, not judged yet."""
        if axis == 'flops' and len({self.cost(trial) for variant in self.variants for trial in variant.finished}) == 1:
            return Family(axis, math.nan, {}, [], {}, 'all variants have the same FLOPs per token: see equal tokens')
        if axis == 'seconds' and any(trial.together for variant in self.variants for trial in variant.finished):
            why = 'runs of one program (--together) have no speed of their own; train some of each variant without it'
            return Family(axis, math.nan, {}, [], {}, why)
        readings, base = self.readings(axis, name), self.variants[0]
        pairs = [readings.pair(variant, [base, *self.lengths]) for variant in self.rivals]
        budget = max((pair.budget for pair in pairs if pair.base is base and
                      min(len(pair.score.losses), len(pair.base_score.losses)) > 1), default=readings.end(base))
        budgets = {base.name: budget, **{pair.ours.name: pair.budget for pair in pairs},
                   **{length.name: readings.end(length) for length in self.lengths}}
        scores, remarks = self._outliers({v.name: readings.score(v, budgets[v.name]) for v in self.variants})
        pairs = [pair._replace(score=scores[pair.ours.name], base_score=pair.base_score._replace(
            outliers=scores[pair.base.name].outliers)) for pair in pairs]
        cuts = {pair.ours.name: text for pair in pairs
                if pair.score.losses and (text := readings.cut(pair, budget))}
        lengths = self._final(readings)
        rises = gains.rises([score for _, score in lengths])
        return Family(axis, budget, scores, [c for pair in pairs if (c := readings.compared(pair, base))],
                      {} if rises else self._gains(readings, lengths), self._why(axis, scores), budgets,
                      tuple(length.name for length in self.lengths), rises, cuts, tuple(remarks))

    def _outliers(self, scores):
        """Returns {variant: Score} with the outliers in their place, and remarks on them."""
        flags = statistics.outliers([np.array(list(score.losses.values())) for score in scores.values()])
        remarks, marked = [], {}
        for variant, flagged in zip(self.variants, flags, strict=True):
            score = scores[variant.name]
            names = {trial.seed: trial.name for trial in used(variant, score)}
            far = {seed: names[seed] for seed, flag in zip(score.losses, flagged, strict=True) if flag}
            marked[variant.name] = score._replace(outliers=far)
            middle = np.median([loss for seed, loss in score.losses.items() if seed not in far] or [math.nan])
            remarks += [(variant.name, f'{run} ended at {score.losses[seed]:.4g}, far from the {middle:.4g} of the '
                         'other seeds: an outlier, which widens the interval') for seed, run in far.items()]
        return marked, remarks

    def _final(self, readings):
        """Returns [(cost, Score)] of the baseline at the end of each of its lengths, the shortest first."""
        return sorted(((cost, score) for cost, score in map(readings.final, [self.variants[0], *self.lengths])
                       if score.losses and not score.notes and math.isfinite(cost)), key=lambda length: length[0])

    def _gains(self, readings, lengths):
        """Returns {variant: Gain} over the final losses of the baseline's lengths, {} from one length."""
        if len(lengths) < 2:
            return {}
        least, most = zip(*(score.optimism for _, score in lengths), strict=True)
        known = {}
        for variant in self.rivals:
            cost, score = readings.final(variant)
            if score.notes or not score.losses or not math.isfinite(cost):
                continue
            bias = comparisons.correct(score.optimism, (min(least), max(most)))
            known[variant.name] = gains.gain(score.losses, cost, [(at, s.losses) for at, s in lengths], bias)
        return {name: gain for name, gain in known.items() if gain}

    def _why(self, axis, scores):
        """Returns why some variants cannot be compared, with the remedy, or ''."""
        finished = {variant.name for variant in self.variants if variant.finished}
        one = [name for name, score in scores.items() if len(score.losses) == 1]
        none = [name for name, score in scores.items() if not score.losses]
        unknown = [name for name in none if name in finished]
        reasons = [f'{", ".join(unknown)}: {UNKNOWN[axis]}'] if unknown else []
        if axis == 'tokens':
            reasons += [f'{name}: no finished run' for name in none if name not in finished]
        if one:
            reasons.append(f'{", ".join(one)}: nothing can be concluded from one seed; give each variant 5 or more')
        return '; '.join(reasons)

    def by_source(self):
        """Returns {source: Family}, not judged yet, of the loss on each held-out source at equal tokens."""
        names = {name for variant in self.variants for trial in variant.finished for name in trial.final}
        return {name.removeprefix('valid/loss/'): self.family('tokens', name)
                for name in sorted(names) if name.startswith('valid/loss/')}
