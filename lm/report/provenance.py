"""The provenance of each trial: its commit, its speed, and the command that repeats it."""
import math
import shlex
from pathlib import Path

from lm import config, hardware
from lm.pages import tags
from lm.report import costs, trials

HEAD = ('run', 'variant', 'seed', 'state', 'loss', 'tokens/s', 'model FLOP/s', 'MFU', 'commit', 'command')
MOST = 400  # trials listed on the page


def section(study, flops):
    """Returns the section that lists every trial of a Study. flops: {costs.key: training FLOPs per token}."""
    value = study.values()
    rows = [_row(variant.name, trial, value, flops) for variant in study.variants for trial in variant.trials]
    long = (*('',) * (len(HEAD) - 1), 'long')
    inside = tags.table(HEAD, rows[:MOST], long)
    more = f'{len(rows) - MOST} more runs are not listed.' if len(rows) > MOST else ''
    marks = 'A + after a commit: the working tree had changes. MFU is relative to the peak of the data sheet, if known.'
    if any(trial.together for variant in study.variants for trial in variant.trials):
        marks += ' shared: the run was one of several in a program (--together).'
    summary = f'{len(rows)} run{"s" * (len(rows) > 1)}, with the command that repeats each'
    return tags.section('Every run', f'<details{" open" * (len(rows) < 12)}><summary>{summary}</summary>{inside}'
                        '</details>', tags.paragraph(f'{more} {marks}'.strip()))


def _row(variant, trial, value, flops):
    loss = value(trial) if trial.state == 'finished' else math.nan
    rate = math.nan if trial.together else trial.speed * flops.get(costs.key(trial.settings), math.nan)
    peak = _peak(trial)
    speed = f'{trial.speed:,.0f}{" shared" * trial.together}' if trial.speed == trial.speed else ''
    return (trial.name, variant, '/'.join(map(str, trial.seed)), trial.state, f'{loss:.4f}' if loss == loss else '',
            speed, f'{rate:.3g}' if rate == rate else '',
            f'{rate / peak:.1%}' if rate / peak == rate / peak else '', _commit(trial), command(trial))


def _peak(trial):
    """Returns the peak FLOP/s of a trial's devices by their data sheet, NaN if unknown."""
    if not {'device', 'devices'} <= trial.about.keys() or trial.about['devices'] < 1:
        return math.nan
    chip = hardware.find(trial.about['device'])
    dtype = trial.settings.get('model.execution.dtype')
    return chip.flops[dtype] * trial.about['devices'] if chip and dtype in chip.flops else math.nan


def _commit(trial):
    commit = trial.about['commit']
    return commit[:10] + ('+' if commit.endswith('+') and len(commit) > 10 else '')


def command(trial):
    """Returns the command that repeats a trial: by its sweep's overrides, else as it was typed."""
    about = trials.sweep_of(trial.directory)
    if about is None:
        return shlex.join(['lm', *map(str, trial.about['command'][1:])])
    changes = about['trials'].get(trial.name) or {}
    file = trial.code and trial.directory.parent / 'experiment.py'
    words = [*about['given'], *(f'{key}={spelled(value, file)}' for key, value in changes.items())]
    return shlex.join(['lm', 'train', str(Path(about['experiment'])), *words])


def spelled(dumped, file=None):
    """Returns a dumped value as an override spells it, with all its fields where its type no longer exists.

    `file` is the experiment file that may define the type. Importing the type is what tells its defaults.
    """
    try:
        return config.spelled(config.build(dumped, file))
    except config.Error:
        if not isinstance(dumped, dict) or not isinstance(dumped.get('type'), str):
            return str(dumped)
        inside = (f'{key}={spelled(value)}' for key, value in dumped.items() if key != 'type')
        return f'{dumped["type"].rpartition(":")[2]}({", ".join(inside)})'
