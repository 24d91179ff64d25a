"""The directory of a sweep: sweep.json lists its trials, and each trial has a run directory of its own in it."""
import contextlib
import fcntl
import functools
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm import config, records
from lm.config import beside, checksums, files, legacy
from lm.config.annotations import is_component
from lm.config.overrides import branches
from lm.config.snapshots import name_of
from lm.config.values import Text, fit
from lm.sweep import zipped
from lm.sweep.rules import Rule
from lm.train import Config, lock, runs

SETTLED = ('finished', 'failed', 'stopped')  # states of trials that need no more training


@dataclass(frozen=True)
class Trial:
    """One run of a sweep: its identity, its overrides of the sweep's base experiment, and its whole settings."""

    id: str
    overrides: dict
    settings: Any
    directory: Path


@dataclass(frozen=True)
class Sweep:
    """A directory in which trials of one experiment are trained, each at most once; `rule` stops bad ones early.

    code: the experiment file to execute where a record has types of its own, None where none is trusted.
    """

    directory: Path
    base: Any
    rule: Rule | None
    trials: tuple[Trial, ...]
    code: Path | None = None


def identity(settings):
    """Returns 16 hex digits of what a run computes: of its settings without those that do not change it."""
    return config.fingerprint({key: name_of(type(value)) if is_component(value) else value
                               for key, value in branches(settings) if not records.free(key)})


def axes(over, seeds):
    """Returns the axes of the grid of texts 'key=value,value' and a number of seeds."""
    grid_axes = []
    for text in over:
        key, equals, values = text.partition('=')
        if not equals or not all(split(values)):
            raise config.Error(f'--over {text} is no list of values; write it as {key or "model.depth"}=1,2.')
        grid_axes.append([{key: Text(value)} for value in split(values)])
    if seeds < 0:
        raise config.Error(f'--seeds={seeds} is negative; try --seeds=5.')
    if seeds:
        grid_axes.append(zipped(dict.fromkeys(records.SEEDS, range(seeds))))
    return grid_axes


def split(text):
    """Returns a text split at commas outside brackets: 'a(1,2),b' -> ['a(1,2)', 'b']."""
    parts, depth = [''], 0
    for letter in text:
        depth += (letter in '([{') - (letter in ')]}')
        if letter == ',' and not depth:
            parts.append('')
        else:
            parts[-1] += letter
    return [part.strip() for part in parts]


def plan(experiment, directory, overrides, rule=None, words=()):
    """Returns the Sweep of a loaded experiment with a trial for each of `overrides` beside those listed already.

    Writes sweep.json. words: the overrides of all trials, as text. Raises config.Error if two trials are the same, an
    override does not fit, or the directory is another sweep's.
    """
    directory, base = Path(directory), experiment.config
    trials, firsts = listed(directory, base, overrides), {}
    for number, trial in enumerate(trials):
        first = firsts.setdefault(trial.id, number)
        if first != number:
            raise config.Error(_twice(first, trials[first], number, trial))
    _check_rule(base, rule, max((trial.settings.steps for trial in trials), default=base.steps))
    lock.check_own(directory, records.SWEEP)
    with alone(directory):
        if records.sweep(directory):
            begun = open_sweep(directory, experiment.file)
            _check_same(begun, base)
            rule = rule or begun.rule
            known = {identity(old.settings) for old in begun.trials}  # of an older version, ids may be others
            trials = [*begun.trials, *(trial for trial in trials if trial.id not in known)]
        sweep = Sweep(directory, base, rule, tuple(trials), experiment.file)
        _write(sweep, experiment, words)
    return sweep


def _twice(first, one, number, other):
    """Returns the message about two trials with one identity."""
    if shown(one) == shown(other):
        return f'trials {first} and {number} of the sweep are the same: {shown(one)}; remove one of them.'
    return (f'trials {first} ({shown(one)}) and {number} ({shown(other)}) of the sweep are the same run: they differ '
            'in settings that affect no result; remove one of them.')


@contextlib.contextmanager
def alone(directory):
    """Locks the list of trials of a directory against other processes; raises config.Error if it cannot be written."""
    try:
        files.make_directory(directory)
        with open(directory / 'lock', 'w', opener=files.unblocked) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
    except OSError as error:
        raise config.Error(f'cannot write to {directory}: {error.strerror}; give another --workdir, '
                           'or free some space.') from error


def listed(directory, base, overrides):
    """Returns the [Trial] of overrides of a base in a sweep's directory."""
    trials = []
    for changes in overrides:
        settings = config.override(base, changes)
        values = dict(branches(settings))
        trial = identity(settings)
        trials.append(Trial(trial, {key: values[key] for key in changes}, settings, directory / trial))
    return trials


def _check_same(begun, base):
    changed = runs.differences(begun.base, base)
    if changed:
        raise config.Error(f'{begun.directory} is the sweep of another experiment: {changed}; give another --workdir, '
                           'or the values it was begun with.')


def judged_every(settings):
    """Returns the number of steps between two losses that a rule can judge by; 0 for a loss at the end only."""
    return settings.cadence.eval if settings.data.valid else settings.cadence.log


def _check_rule(base, rule, steps):
    every = judged_every(base)
    if rule and rule.first >= steps:
        raise config.Error(f'{rule} judges first at step {rule.first} and the trials end at step {steps}; '
                           f'try first={max(1, steps // 10)}.')
    if rule and (not every or rule.first % every):
        raise config.Error(f'{rule} judges at step {rule.first} and cadence.eval={every} has no loss there; '
                           f'try cadence.eval={rule.first}.')


def add(directory, trials):
    """Adds trials to sweep.json; call it within `alone`."""
    about = records.sweep(directory)
    about = {**about, 'trials': about['trials'] | _dumped(trials)}
    files.replace(directory / records.SWEEP, files.sealed(json.dumps(about, indent=1)) + '\n')


def _dumped(trials):
    return {trial.id: {key: config.dump(value) for key, value in trial.overrides.items()} for trial in trials}


def _write(sweep, experiment, words):
    path, here = Path(experiment.file).resolve(), Path.cwd().resolve()
    near = path.relative_to(here) if path.is_relative_to(here) else path  # so that the command works in other checkouts
    about = {'experiment': str(near), 'given': list(words), 'config': config.dump(sweep.base),
             'rule': config.dump(sweep.rule), 'trials': _dumped(sweep.trials)}
    beside.keep(experiment, sweep.directory)
    files.replace(sweep.directory / records.SWEEP, files.sealed(json.dumps(about, indent=1)) + '\n')


def open_sweep(directory, code=None):
    """Returns the Sweep of a directory as listed now; other processes may add trials at any time.

    `code` is an experiment file to execute where types of its own are listed. Raises config.Error where there is no
    sweep, or its sweep.json is damaged.
    """
    about = records.sweep(directory)
    if about is None:
        raise config.Error(f'{directory} holds no sweep; begin one with lm sweep EXPERIMENT --workdir={directory}.')
    return _built(Path(directory), json.dumps(about), code)


@functools.lru_cache(1)
def _built(directory, text, code):
    try:
        sweep = _restored(directory, json.loads(text), code)
    except config.Error:
        raise
    except Exception as error:  # of a damaged record, and of an experiment file that defines a type
        raise _damaged(directory, config.first_line(error)) from error
    if not isinstance(sweep.base, Config) or not isinstance(sweep.rule, Rule | None):
        raise _damaged(directory, f'config is a {type(sweep.base).__name__}, rule a {type(sweep.rule).__name__}')
    return sweep


def _damaged(directory, why):
    return config.Error(f'{directory / records.SWEEP} is damaged ({why}); repair it, or begin another sweep.')


def _restored(directory, about, file):
    """Returns the Sweep of a directory's sweep.json."""
    base = config.build(about['config'], file)
    older = legacy.upgraded(about['config']) != about['config']
    trials = []
    for trial, overrides in about['trials'].items():
        if older:  # its keys and values are those of the version that wrote it
            settings = config.build(legacy.overridden(about['config'], overrides), file)
            values = _overrides(base, settings)
        else:
            values = {key: config.build(value, file) for key, value in overrides.items()}
            settings = config.override(base, values)
        trials.append(Trial(trial, values, settings, directory / trial))
    return Sweep(directory, base, config.build(about['rule'], file), tuple(trials), file)


def _overrides(base, settings):
    """Returns the overrides of `base` that make `settings`, {dotted key: value}, of keys that both have."""
    before, after = dict(branches(base)), dict(branches(settings))
    overrides = {}
    for key in config.diff(base, settings):
        while key not in before or key not in after:
            key = key.rpartition('.')[0]
        overrides[key] = after[key]
    return overrides


def progress(trial):
    """Returns (last recorded step, {step: loss}): the validation loss, or the training loss without held-out data.

    A loss that is not finite is None. A record that cannot be read counts as none, with a warning.
    """
    try:
        stamp = checksums.stamp(trial.directory / records.RECORD)
    except OSError as error:
        if not isinstance(error, FileNotFoundError | NotADirectoryError):
            files.warn(f'{trial.directory / records.RECORD}: {error.strerror}; it counts as none.')
        return 0, {}
    name = 'valid/loss' if trial.settings.data.valid else 'loss'
    return _recorded(trial.directory, name, trial.settings.steps, stamp)


@functools.lru_cache(4096)
def _recorded(directory, name, steps, stamp):  # a file is read again only when it has changed
    try:
        recorded = records.read(directory)
    except config.Error as error:
        files.warn(str(error))
        return 0, {}
    if beyond := [record['step'] for record in recorded if record['step'] > steps]:
        files.warn(f'{directory / records.RECORD}: step {beyond[0]} is beyond the last, {steps}, and left out.')
    recorded = [record for record in recorded if record['step'] <= steps]
    scores = {record['step']: record[name] for record in recorded if name in record}
    return max((record['step'] for record in recorded), default=0), scores


def state(sweep, trial, progressed, curves):
    """Returns the state of a trial by its files: 'new', 'begun', or one of SETTLED.

    progressed: its `progress`. curves: the {step: loss} of all trials, by which the sweep's rule may stop this one.
    """
    step, scores = progressed
    if os.path.lexists(trial.directory / records.FAILED):
        return 'failed'
    if trial.settings.steps in scores and os.path.exists(trial.directory / 'checkpoints' / str(trial.settings.steps)):
        return 'failed' if scores[trial.settings.steps] is None else 'finished'
    if sweep.rule and not sweep.rule.allows(scores, curves):
        return 'stopped'
    return 'begun' if step else 'new'


def states(sweep):
    """Returns ({trial id: state}, {trial id: (last step, {step: loss})}) by the files as they are now."""
    progressed = {trial.id: progress(trial) for trial in sweep.trials}
    curves = [scores for _, scores in progressed.values()]
    return {trial.id: state(sweep, trial, progressed[trial.id], curves) for trial in sweep.trials}, progressed


def reason(trial):
    """Returns why a trial failed, as text."""
    return records.failure(trial.directory) or 'its last loss is not finite.'


def shown(trial):
    """Returns a trial's overrides in one line, of components the fields that differ from their defaults."""
    return ' '.join(f'{key}={config.spelled(value)}' for key, value in trial.overrides.items()) or 'no overrides'


def rule_of(text):
    """Returns the Rule of a text like 'Halving(first=100)', None of an empty text."""
    return fit(Text(text), Rule, '--stop') if text else None
