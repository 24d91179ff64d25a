"""What is read off the curves of runs: the losses of two variants at the budget that both have reached."""
import math
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from lm.report import comparisons, curves, scores
from lm.report.variants import BASELINE, Variant

UNITS = {'tokens': 'tokens', 'flops': 'FLOPs', 'seconds': 'seconds of training'}
AGREE = 1e-6  # relative difference of budgets that are the same


class Pair(NamedTuple):
    """Two variants and their Scores at the budget that all finished runs of both have reached."""

    ours: Variant
    base: Variant
    budget: float
    score: scores.Score
    base_score: scores.Score


class Readings(NamedTuple):
    """The curves of a metric of all finished trials along an axis, {id(trial): (cost [n], value [n])}."""

    axis: str
    curves: dict

    def value(self, trial, budget):
        """Returns a trial's loss at a budget, NaN where it is not known."""
        return curves.value_at(*self.curves[id(trial)], budget)

    def end(self, variant):
        """Returns the least final cost of a variant's finished runs, NaN without one."""
        return min((x[-1] for trial in variant.finished for x, _ in [self.curves[id(trial)]] if len(x)),
                   default=math.nan)

    def score(self, variant, budget):
        """Returns the Score of a variant at a budget."""
        return scores.score(variant, lambda trial: self.value(trial, budget))

    def final(self, variant):
        """Returns (mean cost, Score) of a variant's finished runs at their own ends."""
        score = scores.score(variant, lambda trial: self.curves[id(trial)][1][-1] if len(self.curves[id(trial)][1])
                             else math.nan)
        ends = [self.curves[id(trial)][0][-1] for trial in used(variant, score)]
        return float(np.mean(ends)) if ends else math.nan, score

    def pair(self, ours, lengths):
        """Returns the Pair of a variant and the baseline of several lengths: the shortest that is as long, else the
        longest."""
        end = self.end(ours)
        known = [(self.end(length), index) for index, length in enumerate(lengths) if length.finished]
        longer = [(reached, index) for reached, index in known if reached >= end * (1 - AGREE)]
        reached, index = min(longer) if longer else max(known, default=(math.nan, 0))
        base, budget = lengths[index], float(np.fmin(end, reached))
        return Pair(ours, base, budget, self.score(ours, budget), self.score(base, budget))

    def compared(self, pair, baseline):
        """Returns the Comparison of a Pair, not judged yet; None with fewer than two seeds in either.

        No verdict is given at equal tokens where one side is read before its end, nor where the two were validated on
        different batches.
        """
        c = comparisons.compare(pair.ours.name, pair.score, pair.base_score)
        if c is None:
            return None
        cut = [text for text in [self.cut(pair, pair.budget)] if text]
        length = [f'compared with the baseline of {pair.base.name}'] * (pair.base is not baseline)
        c = replace(c, withheld=c.withheld or bool(cut), notes=(*length, *cut, *c.notes))
        batches = [self._batches(pair.ours, pair.score, pair.budget),
                   self._batches(pair.base, pair.base_score, pair.budget)]
        if len({*batches[0], *batches[1]}) < 2:
            return c
        texts = [' and '.join(str(count or 'all') for count in sorted(counts)) for counts in batches]
        return replace(c, withheld=True, notes=(*c.notes, (
            f'read where its runs were validated on {texts[0]} batches and {_name(pair.base)} on {texts[1]} '
            '(cadence.eval_batches): another measurement; set cadence.eval_batches=0')))

    def _batches(self, variant, score, budget):
        """Returns {validation batches, 0 for all} of a Score; after its last step a run is validated on all."""
        return {0 if self.curves[id(trial)][0][-1] <= budget * (1 + AGREE) else trial.eval_batches
                for trial in used(variant, score)}

    def cut(self, pair, budget):
        """Returns the remark that one of a Pair is read before its end in tokens, or that its budget along another axis
        is not `budget`, the baseline's; '' where there is nothing to say."""
        cut = [variant for variant in (pair.ours, pair.base) if self.end(variant) > pair.budget * (1 + 1e-3)]
        if self.axis != 'tokens':
            far = abs(pair.budget / budget - 1) > 0.01
            return f'compared at {pair.budget:.4g} {UNITS[self.axis]}' if far else ''
        if not cut:
            return ''
        base = _name(pair.base)
        whose, shorter = (base, 'its end') if cut[0] is pair.base else ('it', f'the end of {base}')
        return (f'compared at {pair.budget:,.0f} tokens, {shorter}; {whose} is read there before its end at '
                f'{self.end(cut[0]):,.0f}, while its learning rate has not decayed: no verdict; train both as long')


def _name(variant):
    return 'the baseline' if variant.name == BASELINE else variant.name


def used(variant, score):
    """Returns the finished trials whose losses are in a Score."""
    return [trial for trial in variant.rates[score.rate] if trial.state == 'finished' and trial.seed in score.losses]
