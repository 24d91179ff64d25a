"""Run directories as trials: settings without seeds, metrics as arrays, and how each run ended."""
import functools
import json
import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from lm import records
from lm.config import Error, legacy

LARGEST = float(np.finfo(np.float32).max)  # of a loss, which is computed in float32


@dataclass(frozen=True)
class Trial:
    """One run: `settings` by dotted key, without seeds and without what affects no result, and its metrics `records`.

    root: the directory of the command line that it is in. state: 'finished', 'failed', 'unfinished', or 'stopped'
    (unfinished in a sweep with a stopping rule); why: the reason in words, with the step it reached.
    """

    directory: Path
    root: Path
    about: dict
    settings: dict
    seed: tuple
    records: list
    state: str
    why: str

    @property
    def name(self):
        return self.directory.name

    @property
    def tokens_per_step(self):
        return self.settings['data.batch'] * self.settings['data.context']

    @functools.cached_property
    def speed(self):
        """The median of the recorded tokens per second, robust to slow moments of the machine; NaN without any."""
        speeds = [record['tokens_per_second'] for record in self.records if record.get('tokens_per_second')]
        return float(np.median(speeds)) if speeds else math.nan

    @property
    def together(self):
        """Whether it may have been one of several trials in one program, so that its speed is not its own."""
        return any(word.startswith('--together') and word != '--together=1' for word in self.about['command'])

    @property
    def eval_batches(self):
        """Batches of each validation before the end, 0 for all."""
        return flatten(legacy.upgraded(self.about['config'])).get('cadence.eval_batches') or 0

    @property
    def final(self):
        """{name: value} of all metrics at its last recorded step."""
        last = self.records[-1]['step'] if self.records else 0
        return {name: value for record in self.records if record['step'] == last for name, value in record.items()}

    def series(self, name):
        """Returns (steps [n], values [n]) of a metric, NaN where it was not finite."""
        rows = [(r['step'], math.nan if r[name] is None else r[name]) for r in self.records if name in r]
        return np.array([step for step, _ in rows], float), np.array([value for _, value in rows], float)


def read(directories):
    """Returns the [Trial] of run directories, or of directories of runs such as a sweep's, each once.

    Raises config.Error where there is none.
    """
    trials = {}
    for trial in (trial for root in distinct(directories) for trial in _within(Path(root))):
        place = trial.directory.resolve()
        if place not in trials or trials[place].root == trials[place].directory:  # of a sweep rather than by itself
            trials[place] = trial
    if not trials:
        raise Error(f'no run in {", ".join(map(str, directories)) or "no directory"}; '
                    'give the --workdir of an `lm train`, or the directory of a sweep.')
    return list(trials.values())


def distinct(directories):
    """Returns directories, each once as it is first spelled."""
    return list({Path(directory).resolve(): directory for directory in reversed(directories)}.values())[::-1]


def _within(root):
    if not root.is_dir():
        raise Error(f'{root} is no directory; give the --workdir of an `lm train`, or the directory of a sweep.')
    if (root / 'config.json').exists():
        return [_open(root, root)]
    return [_open(path.parent, root) for path in sorted(root.glob('*/config.json'))]


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


def waiting(directories):
    """Returns the names of trials that sweeps list and that have not begun."""
    return [name for directory in map(Path, distinct(directories))
            for name in (sweep(directory) or {'trials': ()})['trials']
            if not (directory / name / 'config.json').exists()]


def unbegun(runs, directories, rate):
    """Returns the [Trial] that sweeps list and that have not begun, of variants that `runs` have begun.

    Their settings are those of a run whose overrides differ in nothing but seeds and learning rate.
    """
    planned = []
    for directory in map(Path, directories):
        about = sweep(directory) or {'trials': {}}
        begun = {trial.name: trial for trial in runs if trial.directory.parent == directory}
        siblings = {_kind(overrides, rate): begun[name] for name, overrides in about['trials'].items() if name in begun}
        for name, overrides in about['trials'].items():
            sibling = siblings.get(_kind(overrides, rate))
            if sibling and name not in begun:
                flat = flatten(about['config']) | overrides
                rates = {rate: flat[rate]} if rate in flat else {}
                planned.append(replace(
                    sibling, directory=directory / name, settings=sibling.settings | rates, records=[],
                    seed=tuple(map(flat.get, records.SEEDS)), state='unfinished', why='not begun'))
    return planned


def _kind(overrides, rate):
    return json.dumps({key: value for key, value in overrides.items() if key not in (*records.SEEDS, rate)},
                      sort_keys=True)


def sweep(directory):
    """Returns the sweep.json of a directory, None where there is none.

    Its keys: experiment (a path), config, given (the overrides of all trials), rule, trials ({trial: overrides}).
    """
    path = directory / 'sweep.json'
    return _listing(path, path.stat().st_mtime_ns) if path.exists() else None


@functools.lru_cache(8)
def _listing(path, modified):  # read once for all trials of a sweep, and again when it was written to
    try:
        about = json.loads(path.read_text())
        trials = {name: dict(overrides) for name, overrides in about['trials'].items()}
        return {'config': legacy.upgraded(about['config']), 'trials': trials,
                **{name: about[name] for name in ('experiment', 'given', 'rule')}}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Error(f'{path} is no record of a sweep ({error}); give the directories of its trials.') from error


def _open(directory, root):
    try:
        about = json.loads((directory / 'config.json').read_text())
        flat = flatten(legacy.upgraded(about['config']))
        missing = [key for key in ('steps', 'data.batch', 'data.context') if key not in flat]
        wrong = [key for key in ('steps', 'data.batch', 'data.context') if key in flat and not _count(flat[key])]
        about['command'] = list(map(str, about['command']))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Error(f'{directory}/config.json is no record of a run ({error}); repair it, or leave the run '
                    'out.') from error
    if missing:
        raise Error(f'{directory}/config.json lacks {", ".join(missing)}; it is no training run.')
    if wrong:
        raise Error(f'{directory}/config.json has {wrong[0]}={flat[wrong[0]]!r}, which is no positive number; repair '
                    'it, or leave the run out.')
    recorded = [{name: _measurable(value) for name, value in record.items()} for record in records.read(directory)]
    seed = tuple(map(flat.get, records.SEEDS))
    failure = directory / 'failed.json'
    state = _state(recorded, flat['steps'])
    if state[0] == 'unfinished' and (sweep(directory.parent) or {'rule': None})['rule']:
        state = 'stopped', f"{state[1]}, by its sweep's rule or not yet done"
    if failure.exists():
        state = 'failed', _reason(failure)
    return Trial(directory, root, about, variant(flat), seed, recorded, *state)


def _count(value):
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _reason(failure):
    """Returns the error in a failed.json, which a full disk may have cut short."""
    try:
        return str(json.loads(failure.read_text())['error'])
    except (ValueError, KeyError, TypeError):
        return 'its failed.json cannot be read'


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
    if isinstance(dumped, dict) and ':' in str(dumped.get('type')) and dumped['type'] != 'object':
        name, inside = dumped['type'].rpartition(':')[2], dict(dumped)
        del inside['type']
        return ({key: name} if key else {}) | _inside(inside, key)
    if isinstance(dumped, dict) and isinstance(dumped.get('type'), str) and 'value' in dumped:
        return flatten(dumped['value'], key)
    if isinstance(dumped, dict) and dumped:
        return _inside(dumped, key)
    if isinstance(dumped, list) and any(isinstance(item, dict) for item in dumped):
        return _inside({str(index): item for index, item in enumerate(dumped)}, key)
    return {key: ', '.join(map(str, dumped)) if isinstance(dumped, list) else dumped}


def _inside(items, key):
    return {inner: leaf for name, item in items.items()
            for inner, leaf in flatten(item, f'{key}.{name}' if key else name).items()}
