"""Runs as a study: variants scored at equal tokens, FLOPs and seconds, by source and by rate, with their verdicts."""
import ast
import itertools
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lm.config import Error
from lm.config.annotations import close
from lm.report import comparisons, costs, curves, trials, variants

UNKNOWN = {'tokens': 'no loss on record at as many tokens; set a smaller eval_every',
           'flops': 'no loss on record at as many FLOPs, or FLOPs a token not known; set a smaller eval_every',
           'seconds': 'no loss on record after as many seconds, or no speed; set a smaller eval_every'}


@dataclass(frozen=True)
class Options:
    """What is asked of a study. baseline: '' for the sweep's own; margin: None for the noise floor; metric: '' for the
    validation loss, or bits per byte where tokenizers differ; rate: the setting that is a learning rate.
    """

    baseline: str = ''
    margin: float | None = None
    metric: str = ''
    rate: str = 'optimizer.peak'


class Family(NamedTuple):
    """All comparisons with the baseline at one budget: `scores` by variant, `compared` and `gains` where there are.

    why: what keeps it from being judged, or ''.
    """

    axis: str
    budget: float
    scores: dict
    compared: list
    gains: dict
    why: str = ''


@dataclass(frozen=True)
class Study:
    """Everything a report says: the first of `variants` is the baseline; `families` by axis; `sources` by source.

    left: [(trial, why)] that are counted nowhere. untuned: the rate, where each variant ran at one, or ''.
    """

    question: str
    table: 'Table'
    margin: float
    noise: float
    families: dict
    sources: dict
    left: list
    untuned: str

    @property
    def variants(self):
        return self.table.variants

    @property
    def metric(self):
        return self.table.metric


def read(directories, options=Options()):
    """Returns the Study of run directories; raises config.Error where nothing in them can be compared."""
    found = trials.read(directories)
    _check_asked(options, found)
    metric = _metric(found, options.metric)
    found = trials.measured(found, metric)
    groups = variants.gather(found, options.rate, options.baseline, _first(found, directories, options.rate))
    left = [(trial.name, f'{trial.state}: {trial.why}') for trial in found if trial.state != 'finished']
    left += [(name, 'not begun') for name in trials.waiting(directories)]
    done = [trial for trial in found if trial.state == 'finished']
    if not done:
        raise Error(f'none of {len(found)} runs is finished ({left[0][0]}: {left[0][1]}); the same `lm train` or '
                    '`lm sweep` line goes on with them.')
    trials.check_alike(done, 'data.valid', 'leave some out')
    flops = costs.per_token(done) if len({costs.key(trial.settings) for trial in done}) > 1 else {}
    table = Table(groups, metric, flops).ranked()
    families = {axis: table.family(axis) for axis in curves.AXES}
    noise = comparisons.noise(families['tokens'].scores[table.variants[0].name])
    margin = noise if options.margin is None else options.margin
    families = {axis: _judged({axis: family}, margin)[axis] for axis, family in families.items()}
    return Study(_question(found[0]), table, margin, noise, families, _judged(table.by_source(), margin), left,
                 _untuned(groups, options.rate))


def _check_asked(options, found):
    if options.margin is not None and not 0 < options.margin < math.inf:
        raise Error(f'--margin={options.margin:g} is no size of a difference; try --margin=0.01.')
    known = {key for trial in found for key in trial.settings}
    if options.rate not in known and options.rate != Options.rate:
        near = close(options.rate, known) or ['optimizer.peak']
        raise Error(f'no run has a setting {options.rate!r}; did you mean {near[0]!r}?')


def _untuned(groups, rate):
    base, *others = groups
    changes = {key for other in others for key in variants.changed(base.settings, other.settings)}
    return '' if base.rate_key or changes <= {rate} else rate


def _judged(families, margin):
    """Returns {name: Family} with the comparisons of all of them judged as one family."""
    every = iter(comparisons.judge([c for family in families.values() for c in family.compared], margin))
    return {name: family._replace(compared=list(itertools.islice(every, len(family.compared))))
            for name, family in families.items()}


def _metric(found, asked):
    valid = sorted({name for trial in found if trial.state == 'finished' for name in trial.final
                    if name.startswith('valid/')})
    if not any('valid/loss' in record for trial in found for record in trial.records):
        raise Error(f'{found[0].directory} has no valid/loss, like all {len(found)} runs given; '
                    'set data.valid to a source and train again, or wait for the first validation.')
    if asked and asked not in valid:
        raise Error(f'no finished run has recorded {asked!r}; there are {", ".join(valid)}.')
    tokenizers = {json.dumps({k: v for k, v in trial.settings.items() if k.startswith('data.tokenizer')})
                  for trial in found}
    return asked or ('valid/bits_per_byte' if len(tokenizers) > 1 else 'valid/loss')


def _first(found, directories, rate):
    """Returns the name of a trial with a sweep's own settings, whatever its seeds and rate, or its first, or None."""
    for directory in map(Path, directories):
        about = trials.sweep(directory)
        if about:
            own = variants.without(trials.variant(trials.flatten(about['config'])), rate)
            plain = [trial.name for trial in found if variants.without(trial.settings, rate) == own]
            return next(iter(plain + list(about['trials'])), None)
    return None


def _question(trial):
    """Returns the first sentence of the docstring of a trial's experiment file, or ''."""
    path = trial.directory / 'experiment.py'
    try:
        text = ast.get_docstring(ast.parse(path.read_text(encoding='utf-8'))) or ''
    except (OSError, SyntaxError):
        return ''
    return ' '.join(text.split('\n\n')[0].split())


class Table(NamedTuple):
    """The variants, the baseline first, and what is read of them: a metric, and FLOPs a token by costs.key."""

    variants: list
    metric: str
    flops: dict

    def ranked(self):
        """Returns the same with the variants after the baseline by their losses at equal tokens, the least first."""
        scores = self.family('tokens').scores
        base, *others = self.variants
        return self._replace(variants=[base, *sorted(others, key=lambda each: scores[each.name].mean)])

    def cost(self, trial):
        """Returns a trial's FLOPs a token, 1 where all cost the same, NaN where they cannot be counted."""
        return self.flops.get(costs.key(trial.settings), math.nan) if self.flops else 1.0

    def curve(self, trial, axis, name):
        """Returns (cost [n], value [n]) of what a trial recorded, finite values alone."""
        steps, values = trial.series(name)
        x = curves.axis(trial, steps, axis, self.cost(trial))
        kept = np.isfinite(values)
        return x[kept], values[kept]

    def family(self, axis, name=''):
        """Returns the Family, not judged yet, at the least cost that any finished trial came to."""
        if axis == 'flops' and len({self.cost(trial) for variant in self.variants for trial in variant.finished}) == 1:
            why = f'not counted for more than {costs.MOST} models' if self.flops is None else \
                'a token costs all variants the same: see equal tokens'
            return Family(axis, math.nan, {}, [], {}, why)
        if axis == 'seconds' and any(trial.together for variant in self.variants for trial in variant.finished):
            why = 'runs of one program (--together) have no speed of their own; train some of each variant without it'
            return Family(axis, math.nan, {}, [], {}, why)
        known = self._curves(axis, name or self.metric)
        budget = _least(known)
        scores = {v.name: comparisons.score(v, lambda t: curves.value_at(*known[id(t)], budget))
                  for v in self.variants}
        base, *others = scores
        compared = [comparisons.compare(other, scores[other], scores[base]) for other in others]
        return Family(axis, budget, scores, [c for c in compared if c],
                      self._gains(scores, known, budget), self._why(axis, scores))

    def values(self, axis):
        """Returns value(trial) -> the metric at the least cost that any finished trial came to."""
        known = self._curves(axis, self.metric)
        budget = _least(known)
        return lambda trial: curves.value_at(*known[id(trial)], budget)

    def _curves(self, axis, name):
        return {id(trial): self.curve(trial, axis, name) for variant in self.variants for trial in variant.finished}

    def _gains(self, scores, known, budget):
        """Returns {variant: Gain} against the mean curve of the baseline's seeds at the rate it does best with."""
        base, *others = self.variants
        curve = [known[id(trial)] for trial in base.rates[scores[base.name].rate] if trial.state == 'finished']
        curve = [(x, y) for x, y in curve if len(x) > 1 and np.isfinite(x).all()]
        if not curve:
            return {}
        x, mean, _, _ = curves.band(curve)
        losses = {other.name: scores[other.name].mean for other in others if scores[other.name].losses}
        return curves.gains(x, mean, losses, budget) if len(x) else {}

    def _why(self, axis, scores):
        """Returns what keeps some variant from being compared, with the remedy, or ''."""
        finished = {variant.name for variant in self.variants if variant.finished}
        one = [name for name, score in scores.items() if len(score.losses) == 1]
        none = [name for name, score in scores.items() if not score.losses]
        unknown = [name for name in none if name in finished]
        said = [f'{", ".join(unknown)}: {UNKNOWN[axis]}'] if unknown else []
        if axis == 'tokens':
            said += [f'{name}: no finished run' for name in none if name not in finished]
        if one:
            said.append(f'{", ".join(one)}: nothing can be concluded from one seed; give each variant 5 or more')
        return '; '.join(said)

    def by_source(self):
        """Returns {source: Family}, not judged yet, of the held-out loss of each source at equal tokens."""
        names = {name for variant in self.variants for trial in variant.finished for name in trial.final}
        return {name.removeprefix('valid/loss/'): self.family('tokens', name)
                for name in sorted(names) if name.startswith('valid/loss/')}


def _least(known):
    return min((x[-1] for x, _ in known.values() if len(x)), default=math.nan)
