"""Runs as a study: variants compared at equal tokens, FLOPs and seconds, in all and by source, with verdicts."""
import ast
import itertools
import json
import math
from dataclasses import dataclass
from pathlib import Path

from lm.config import Error, files
from lm.config.annotations import close
from lm.report import comparisons, costs, curves, trials, variants
from lm.report.tables import Table


@dataclass(frozen=True)
class Options:
    """How runs are compared.

    baseline: name of a variant or run, '' for the sweep's own settings. margin: None for the noise floor. metric: ''
    for the validation loss, or bits per byte where tokenizers differ. rate: key of the learning rate. trust: whether
    the code of the runs' experiments may be executed, where models are defined there.
    """

    baseline: str = ''
    margin: float | None = None
    metric: str = ''
    rate: str = 'optimizer.peak'
    trust: bool = False


@dataclass(frozen=True)
class Study:
    """Everything that a report shows; the first of `variants` is the baseline.

    families: {axis: Family}. sources: {source: Family} of the loss on each held-out source. left_out: [(trial, why)].
    untuned: key of the learning rate if every variant ran at one rate only, else ''.
    """

    question: str
    table: Table
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

    def values(self):
        """Returns value(trial) -> the metric at equal tokens: at the budget at which its variant is compared."""
        return self.table.values(self.families['tokens'])


def read(directories, options=Options()):
    """Returns the Study of run directories; raises config.Error where nothing in them can be compared."""
    directories = trials.distinct(directories)
    runs, missing = trials.read(directories, options.trust)
    _check_options(options, runs)
    metric = _metric(runs, options.metric)
    runs = trials.measured(runs, metric) + trials.unbegun(runs, missing, directories, options.rate)
    groups = variants.gather(runs, options.rate, options.baseline, _first(runs, directories, options.rate))
    left_out = [(trial.name, f'{trial.state}: {trial.why}') for trial in runs if trial.state != 'finished']
    named = {trial.directory for trial in runs}
    left_out += [(path.name, why) for path, why in missing.items() if path not in named]
    done = [trial for trial in runs if trial.state == 'finished']
    if not done:
        raise Error(f'none of {len(runs)} runs is finished ({left_out[0][0]}: {left_out[0][1]}); run the same '
                    '`lm train` or `lm sweep` command to resume them, or try --metric=valid/loss.')
    trials.check_alike(done, 'data.valid', 'leave some out')
    flops = costs.per_token(done) if len({costs.key(trial.settings) for trial in done}) > 1 else {}
    table = Table(groups, variants.lengths(groups, options.rate), metric, flops).ranked()
    families = {axis: table.family(axis) for axis in curves.AXES}
    noise = families['tokens'].scores[table.variants[0].name].usual.spread
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
        text = ast.get_docstring(ast.parse(files.content(path))) or ''
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):  # as Python reads what is no Python
        return ''
    return ' '.join(text.split('\n\n')[0].split())
