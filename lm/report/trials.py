"""Run directories as trials: settings without seeds, metrics as arrays, and how each run ended."""
import functools
import json
import math
import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from lm import records
from lm.config import Error, build, files, first_line, legacy

CONFIG = 'config.json'
RUN = {'config': dict, 'command': [str], 'commit': str, 'device?': str, 'devices?': int}  # of config.json
COUNTS = {'steps': 1, 'data.batch': 1, 'data.context': 1, 'cadence.eval_batches': 0}  # setting: the least it can be
MEND = 'the `lm sweep` command of its sweep, run again, writes its settings again'
LARGEST = float(np.finfo(np.float32).max)  # of a loss, which is computed in float32


@dataclass(frozen=True)
class Trial:
    """One run: `settings` by dotted key, without seeds and without what affects no result, and its metrics `records`.

    root: the directory of the command line that it is in. state: 'finished', 'failed', 'unfinished', 'stopped'
    (unfinished in a sweep with a stopping rule), or 'damaged' (in a sweep, its config.json unreadable); why: the reason
    in words, with the step it reached. code: its experiment file, to be executed where it defines types, None where it
    is not trusted.
    """

    directory: Path
    root: Path
    about: dict
    settings: dict
    seed: tuple
    records: list
    state: str
    why: str
    code: Path | None = None

    @property
    def name(self):
        return self.directory.name

    @property
    def tokens_per_step(self):
        return self.settings['data.batch'] * self.settings['data.context']

    @functools.cached_property
    def speed(self):
        """The median of the recorded tokens per second, robust to slow moments of the machine; NaN without any."""
        speeds = [record['tokens_per_second'] for record in self.records if (record.get('tokens_per_second') or 0) > 0]
        return float(np.median(speeds)) if speeds else math.nan

    @property
    def together(self):
        """Whether it may have been one of several trials in one program, so that its speed is not its own."""
        return any(word.startswith('--together') and word != '--together=1' for word in self.about['command'])

    @property
    def eval_batches(self):
        """Batches of each validation before the end, 0 for all."""
        return flatten(self.about['config']).get('cadence.eval_batches', 0)

    @property
    def final(self):
        """{name: value} of all metrics at its last recorded step."""
        last = self.records[-1]['step'] if self.records else 0
        return {name: value for record in self.records if record['step'] == last for name, value in record.items()}

    def model(self):
        """Returns its model; raises config.Error that says why it cannot be built."""
        return build(self.about['config']['model'], self.code)

    def series(self, name):
        """Returns (steps [n], values [n]) of a metric, NaN where it was not finite."""
        rows = [(r['step'], math.nan if r[name] is None else r[name]) for r in self.records if name in r]
        return np.array([step for step, _ in rows], float), np.array([value for _, value in rows], float)


def read(directories, trust=False):
    """Returns ([Trial], {directory: why it is left out}) of directories of a run, or of runs such as a sweep's.

    Each run is there once. Left out are, of what a directory holds, runs that are damaged, trials that a sweep lists
    and that have not begun, and directories of other runs. trust: whether the runs' own code may be executed. Raises
    config.Error where a run named by itself is damaged, and where there is none.
    """
    trials, missing = {}, {}
    for root in map(Path, distinct(directories)):
        inside, left_out = _within(root, trust)
        missing |= left_out
        for trial in inside:
            place = os.path.realpath(trial.directory)
            if place not in trials or trials[place].root == trials[place].directory:  # of a sweep rather than by itself
                trials[place] = trial
    if not trials:
        first = next((f' ({path.name}: {why})' for path, why in missing.items()), '')
        raise Error(f'no run in {", ".join(map(str, directories)) or "no directory"}{first}; '
                    'give the --workdir of an `lm train`, or the directory of a sweep.')
    known = trials.keys() | set(map(os.path.realpath, directories))
    return list(trials.values()), {path: why for path, why in missing.items() if os.path.realpath(path) not in known}


def distinct(directories):
    """Returns directories, each once as it is first spelled."""
    return list({os.path.realpath(directory): directory for directory in reversed(directories)}.values())[::-1]


def _within(root, trust):
    """Returns ([Trial], {directory: why it is left out}) of a run's directory, or of a directory of runs."""
    if os.path.lexists(root / CONFIG):
        return [_open(root, root, trust)], {}
    try:
        names = sorted(os.listdir(root))
    except OSError as error:
        fact = f'cannot read {root}: {error.strerror}' if os.path.isdir(root) else f'{root} is no directory'
        raise Error(f'{fact}; give the --workdir of an `lm train`, or the directory of a sweep.') from error
    listed, trials, missing = records.sweep(root) or {'trials': ()}, [], {}
    for directory in (root / name for name in names):
        why = _no_run(directory, listed['trials'])
        try:
            trials += [] if why is not None else [_open(directory, root, trust)]
        except files.Damaged as fault:
            why = f'{fault.fact}; {MEND}' if directory.name in listed['trials'] else str(fault)
        except Error as error:
            why = str(error)
        if why:
            missing[directory] = why
    begun = {trial.name for trial in trials} | {directory.name for directory in missing}
    return trials, missing | {root / name: f'failed: {failure}' if (failure := records.failure(root / name)) else
                              'not begun' for name in listed['trials'] if name not in begun}


def _no_run(path, listed):
    """Returns None for the directory of a run, '' for what has nothing to do with one, else what it is or lacks.

    listed: the names of the trials of a sweep that it is in.
    """
    if not os.path.isdir(path):
        return '' if os.path.exists(path) else 'a link that leads nowhere'
    try:
        names = os.listdir(path)
    except OSError as error:
        return f'it cannot be read: {error.strerror}'
    if CONFIG in names:
        return None
    if records.RECORD in names or 'checkpoints' in names:
        return f'its {CONFIG} is missing; {MEND}' if path.name in listed and 'checkpoints' in names else \
            f'its {CONFIG} is missing'
    if records.SWEEP in names or any(os.path.lexists(path / name / CONFIG) for name in names):
        return f'it holds runs of its own; give {path} too'
    return ''


def check_alike(trials, part, remedy):
    """Raises config.Error where trials differ in a part of their settings that makes their losses incomparable."""
    kinds = {json.dumps({key: value for key, value in trial.settings.items() if f'{key}.'.startswith(f'{part}.')})
             for trial in trials}
    if len(kinds) > 1:
        raise Error(f'the runs have {len(kinds)} different {part}, whose losses do not compare; {remedy}.')


def measured(trials, metric):
    """Returns the [Trial], of which those that finished without a finite value of a metric count as failed."""
    return [replace(trial, state='failed', why=f'no finite {metric} at its last step')
            if trial.state == 'finished' and trial.final.get(metric) is None else trial for trial in trials]


def unbegun(runs, missing, directories, rate):
    """Returns the [Trial] that sweeps list and that are `missing`, see `read`, of variants that `runs` have begun.

    Their settings are those of a run whose overrides differ in nothing but seeds and learning rate.
    """
    planned = []
    for directory in map(Path, directories):
        about = sweep(directory) or {'trials': {}}
        begun = {trial.name: trial for trial in runs if trial.directory.parent == directory}
        siblings = {_kind(overrides, rate): begun[name] for name, overrides in about['trials'].items() if name in begun}
        for name, overrides in about['trials'].items():
            sibling = siblings.get(_kind(overrides, rate))
            if sibling and directory / name in missing:
                flat = flatten(about['config']) | overrides
                rates = {rate: flat[rate]} if rate in flat else {}
                planned.append(replace(
                    sibling, directory=directory / name, settings=sibling.settings | rates, records=[],
                    seed=tuple(map(flat.get, records.SEEDS)), why=missing[directory / name],
                    state='damaged' if missing[directory / name].endswith(MEND) else 'unfinished'))
    return planned


def _kind(overrides, rate):
    return json.dumps({key: value for key, value in overrides.items() if key not in (*records.SEEDS, rate)},
                      sort_keys=True)


def sweep(directory):
    """Returns the sweep.json of a directory, see records.sweep, in the form of this version; None without one."""
    about = records.sweep(directory)
    return about and {**about, 'config': _upgraded(about['config'], Path(directory) / records.SWEEP)}


def sweep_of(trial):
    """Returns the sweep.json of a trial's sweep, None where there is none or, with a warning, where it is damaged."""
    try:
        return sweep(trial.parent)
    except Error as error:
        files.warn(str(error))
        return None


def _upgraded(config, path):
    try:
        return legacy.upgraded(config)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise Error(f'{path} is damaged ({first_line(error)}); repair it, or leave the run out.') from error


def _open(directory, root, trust):
    path = directory / CONFIG
    about = files.read_json(path, RUN, 'repair it, or leave the run out.')
    about['config'] = _upgraded(about['config'], path)
    flat = flatten(about['config'])
    for key, least in COUNTS.items():
        if key not in flat and least:
            raise Error(f'{path} lacks {key}; it is no training run.')
        if not (type(flat.get(key, least)) is int and least <= flat.get(key, least) < records.STEPS):
            raise Error(f'{path} has {key}={str(flat[key])[:100]}, which is no positive number; repair it, or leave '
                        'the run out.')
    recorded = [{name: _measurable(value) for name, value in record.items()} for record in records.read(directory)]
    seed = tuple(map(flat.get, records.SEEDS))
    state, why = _state(recorded, flat['steps'])
    if state == 'unfinished' and (sweep_of(directory) or {'rule': None})['rule']:
        state, why = 'stopped', f"{why}, by its sweep's rule or not yet done"
    if failure := records.failure(directory):
        state, why = 'failed', failure
    code = directory / 'experiment.py' if trust else None
    return Trial(directory, root, about, variant(flat), seed, recorded, state, why, code)


def variant(flat):
    """Returns {dotted key: value} without seeds and without what affects no result."""
    return {key: value for key, value in flat.items()
            if key not in records.SEEDS and not records.free(key)}


def _measurable(value):
    """Returns a recorded value, None for one that is no finite number of a loss's precision."""
    known = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= LARGEST
    return value if known else None


def _state(records, steps):
    reached = max((record['step'] for record in records), default=0)
    scores = [record for record in records if 'valid/loss' in record]
    broken = [record['step'] for record in records if None in (record.get('loss', 0), record.get('valid/loss', 0))]
    if reached > steps:
        return 'failed', f'its record goes to step {reached} of {steps}'
    if scores and scores[-1]['step'] >= steps and scores[-1]['valid/loss'] is not None:
        return 'finished', f'finished {steps} steps'
    if broken and broken[-1] == reached:
        return 'failed', f'loss not finite at step {reached}'
    if reached < steps:
        return 'unfinished', f'at step {reached} of {steps}'
    return 'unfinished', 'no valid/loss at its last step'


def flatten(dumped, key=''):
    """Returns {dotted key: leaf} of a dumped configuration, where a component's own key has the name of its type.

    Types are not imported, so that they need not exist any more.
    """
    kind = dumped.get('type') if isinstance(dumped, dict) else None
    if isinstance(kind, str) and ':' in kind:
        name, inside = dumped['type'].rpartition(':')[2], dict(dumped)
        del inside['type']
        return ({key: name} if key else {}) | _inside(inside, key)
    if isinstance(kind, str) and 'value' in dumped:
        return flatten(dumped['value'], key)
    if isinstance(dumped, dict) and dumped:
        return _inside(dumped, key)
    if isinstance(dumped, list) and any(isinstance(item, dict) for item in dumped):
        return _inside({str(index): item for index, item in enumerate(dumped)}, key)
    if isinstance(dumped, dict):
        return {key: '{}'}
    return {key: ', '.join(map(str, dumped)) if isinstance(dumped, list) else dumped}


def _inside(items, key):
    return {inner: leaf for name, item in items.items()
            for inner, leaf in flatten(item, f'{key}.{name}' if key else name).items()}
