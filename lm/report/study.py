"""Runs as a study: variants compared at equal tokens, FLOPs and seconds, in all and by source, with verdicts."""
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

UNKNOWN = {'tokens': 'no loss recorded at this many tokens; set a smaller cadence.eval',
           'flops': 'no loss recorded at this many FLOPs, or FLOPs per token unknown; set a smaller cadence.eval',
           'seconds': 'no loss recorded after this many seconds, or no speed; set a smaller cadence.eval'}


@dataclass(frozen=True)
class Options:
    """How runs are compared.

    baseline: name of a variant or run, '' for the sweep's own settings. margin: None for the noise floor. metric: ''
    for the validation loss, or bits per byte where tokenizers differ. rate: key of the learning rate.
    """

    baseline: str = ''
    margin: float | None = None
    metric: str = ''
    rate: str = 'optimizer.peak'


class Family(NamedTuple):
    """All comparisons with the baseline at one budget along an axis (tokens, flops or seconds).

    scores: {variant: Score}. compared: [Comparison]. gains: {variant: Gain}. why: why it cannot be judged, or ''.
    """

    axis: str
    budget: float
    scores: dict
    compared: list
    gains: dict
    why: str = ''


@dataclass(frozen=True)
class Study:
    """Everything that a report shows; the first of `variants` is the baseline.

    families: {axis: Family}. sources: {source: Family} of the loss on each held-out source. left_out: [(trial, why)].
    untuned: key of the learning rate if every variant ran at one rate only, else ''.
    """

    question: str
    table: 'Table'
    margin: float
    noise: float
    families: dict
    sources: dict
    left_out: list
    untuned: str

    @property
    def variants(self):
        return self.table.variants

    @property
    def metric(self):
        return self.table.metric


def read(directories, options=Options()):
    """Returns the Study of run directories; raises config.Error where nothing in them can be compared."""
    runs = trials.read(directories)
    _check_options(options, runs)
    metric = _metric(runs, options.metric)
    runs = trials.measured(runs, metric)
    groups = variants.gather(runs, options.rate, options.baseline, _first(runs, directories, options.rate))
    left_out = [(trial.name, f'{trial.state}: {trial.why}') for trial in runs if trial.state != 'finished']
    left_out += [(name, 'not begun') for name in trials.waiting(directories)]
    done = [trial for trial in runs if trial.state == 'finished']
    if not done:
        raise Error(f'none of {len(runs)} runs is finished ({left_out[0][0]}: {left_out[0][1]}); run the same '
                    '`lm train` or `lm sweep` command to resume them.')
    trials.check_alike(done, 'data.valid', 'leave some out')
    flops = costs.per_token(done) if len({costs.key(trial.settings) for trial in done}) > 1 else {}
    table = Table(groups, metric, flops).ranked()
    families = {axis: table.family(axis) for axis in curves.AXES}
    noise = comparisons.noise(families['tokens'].scores[table.variants[0].name])
    margin = noise if options.margin is None else options.margin
    families = {axis: _judged({axis: family}, margin)[axis] for axis, family in families.items()}
    return Study(_question(runs[0]), table, margin, noise, families, _judged(table.by_source(), margin), left_out,
                 _untuned(groups, options.rate))


def _check_options(options, runs):
    if options.margin is not None and not 0 < options.margin < math.inf:
        raise Error(f'--margin={options.margin:g} is no size of a difference; try --margin=0.01.')
    known = {key for trial in runs for key in trial.settings}
    if options.rate not in known and options.rate != Options.rate:
        near = close(options.rate, known) or ['optimizer.peak']
        raise Error(f'no run has a setting {options.rate!r}; did you mean {near[0]!r}?')


def _untuned(groups, rate):
    base, *others = groups
    changes = {key for other in others for key in variants.changed(base.settings, other.settings)}
    return '' if base.rate_key or changes <= {rate} else rate


def _judged(families, margin):
    """Returns {name: Family} judged, with p adjusted over the comparisons of all of them."""
    judged = iter(comparisons.judge([c for family in families.values() for c in family.compared], margin))
    return {name: family._replace(compared=list(itertools.islice(judged, len(family.compared))))
            for name, family in families.items()}


def _metric(runs, name):
    """Returns the metric to compare runs by, `name` unless ''; raises config.Error where it was not recorded."""
    recorded = sorted({metric for trial in runs if trial.state == 'finished' for metric in trial.final
                       if metric.startswith('valid/')})
    if not any('valid/loss' in record for trial in runs for record in trial.records):
        raise Error(f'{runs[0].directory} has no valid/loss, and so has none of the {len(runs)} runs; '
                    'set data.valid to a source and train again, or wait for the first validation.')
    if name and name not in recorded:
        raise Error(f'no finished run has recorded {name!r}; there are {", ".join(recorded)}.')
    tokenizers = {json.dumps({k: v for k, v in trial.settings.items() if k.startswith('data.tokenizer')})
                  for trial in runs}
    return name or ('valid/bits_per_byte' if len(tokenizers) > 1 else 'valid/loss')


def _first(runs, directories, rate):
    """Returns the name of a trial that has a sweep's own settings but for seeds and rate, else of its first, or None.
    """
    for directory in map(Path, directories):
        about = trials.sweep(directory)
        if about:
            own = variants.without(trials.variant(trials.flatten(about['config'])), rate)
            plain = [trial.name for trial in runs if variants.without(trial.settings, rate) == own]
            return next(iter(plain + list(about['trials'])), None)
    return None


def _question(trial):
    """Returns the first paragraph of the docstring of a trial's experiment file, or ''."""
    path = trial.directory / 'experiment.py'
    try:
        text = ast.get_docstring(ast.parse(path.read_text(encoding='utf-8'))) or ''
    except (OSError, SyntaxError):
        return ''
    return ' '.join(text.split('\n\n')[0].split())


class Table(NamedTuple):
    """The variants, the baseline first, the metric, and {costs.key: training FLOPs per token} where those differ."""

    variants: list
    metric: str
    flops: dict

    def ranked(self):
        """Returns the Table with the other variants sorted by loss at equal tokens."""
        scores = self.family('tokens').scores
        base, *others = self.variants
        return self._replace(variants=[base, *sorted(others, key=lambda variant: scores[variant.name].mean)])

    def cost(self, trial):
        """Returns a trial's training FLOPs per token, 1 where all are alike, NaN if unknown."""
        return self.flops.get(costs.key(trial.settings), math.nan) if self.flops else 1.0

    def curve(self, trial, axis, name):
        """Returns (cost [n], value [n]) of a metric of a trial, without values that are not finite."""
        steps, values = trial.series(name)
        x = curves.axis(trial, steps, axis, self.cost(trial))
        kept = np.isfinite(values)
        return x[kept], values[kept]

    def family(self, axis, name=''):
        """Returns the Family of a metric, not judged yet, at the smallest final cost of any finished trial."""
        if axis == 'flops' and len({self.cost(trial) for variant in self.variants for trial in variant.finished}) == 1:
            return Family(axis, math.nan, {}, [], {}, 'all variants have the same FLOPs per token: see equal tokens')
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
        """Returns value(trial) -> the metric at the smallest final cost of any finished trial."""
        known = self._curves(axis, self.metric)
        budget = _least(known)
        return lambda trial: curves.value_at(*known[id(trial)], budget)

    def _curves(self, axis, name):
        return {id(trial): self.curve(trial, axis, name) for variant in self.variants for trial in variant.finished}

    def _gains(self, scores, known, budget):
        """Returns {variant: Gain} over the mean curve of the baseline's seeds at its best rate."""
        base, *others = self.variants
        curve = [known[id(trial)] for trial in base.rates[scores[base.name].rate] if trial.state == 'finished']
        curve = [(x, y) for x, y in curve if len(x) > 1 and np.isfinite(x).all()]
        if not curve:
            return {}
        x, mean, _, _ = curves.band(curve)
        losses = {other.name: scores[other.name].mean for other in others if scores[other.name].losses}
        return curves.gains(x, mean, losses, budget) if len(x) else {}

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


def _least(known):
    return min((x[-1] for x, _ in known.values() if len(x)), default=math.nan)
