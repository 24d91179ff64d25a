"""The status of a sweep in the terminal: trials by state, the best losses, the time left."""
import sys
import time
from typing import NamedTuple

from lm import records
from lm.config import files
from lm.pages.text import clock
from lm.sweep import claims, repairs, search
from lm.sweep.trials import SETTLED, open_sweep, reason, shown, states

STALLED = 600  # seconds without a new record after which a running trial is pointed out
COLOURS = {'finished': 'green', 'running': 'cyan', 'failed': 'red', 'stopped': 'yellow', 'begun': '', 'new': ''}
ORDER = ('running', 'failed', 'finished', 'begun', 'stopped', 'new')  # of the rows of the table


class Status(NamedTuple):
    """{trial id: state}, {trial id: (last step, {step: loss})}, and the seconds left in all, None if unknown."""

    states: dict
    progress: dict
    seconds: float | None


def watch(directory, code=None):
    """Shows the status of a sweep until it is done or interrupted; once if standard output is no terminal.

    code: as for open_sweep.
    """
    sweep = open_sweep(directory, code)
    if not sys.stdout.isatty():
        show(sweep)
        return
    _warn(sweep)
    from rich import live
    desk = claims.Claims(sweep.directory)
    with live.Live(refresh_per_second=1) as screen:
        while True:
            sweep = open_sweep(directory, code)
            status = status_of(sweep, desk)
            screen.update(_table(sweep, status))
            if search.ended(sweep) and all(state in SETTLED for state in status.states.values()):
                return
            time.sleep(claims.PERIOD)


def show(sweep):
    """Prints the status of a sweep: counts by state, the best trials, stalled ones, and failed ones with the reason."""
    _warn(sweep)
    status = status_of(sweep, claims.Claims(sweep.directory))
    print(summary(status), flush=True)
    for trial in ranked(sweep, status)[:5]:
        print(f'  {trial.id}  {best_loss(status, trial):.4f}  {shown(trial)}', flush=True)
    ages = {trial.id: record_age(trial) for trial in sweep.trials if status.states[trial.id] == 'running'}
    for trial, seconds in [row for row in ages.items() if row[1] > STALLED][:5]:
        print(f'  {trial}  running, without a new record for {clock(seconds)}', flush=True)
    failed = [trial for trial in sweep.trials if status.states[trial.id] == 'failed']
    for trial in failed[:5]:
        print(f'  {trial.id}  failed  {shown(trial)}: {reason(trial)}', flush=True)


def _warn(sweep):
    for fault in repairs.faults(sweep).values():
        files.warn(f'{fault}; run the `lm sweep` command again, which writes its settings again.')


def status_of(sweep, desk):
    """Returns the Status of a sweep now; `desk` are the Claims that tell which trials run."""
    by_files, progress = states(sweep)
    for trial, number in desk.newest().items():
        if by_files.get(trial) in ('new', 'begun') and desk.lives(trial, number):
            by_files[trial] = 'running'
    return Status(by_files, progress, _seconds_left(sweep, by_files, progress))


def _seconds_left(sweep, by_files, progress):
    """Returns the seconds for all steps left at the summed speed of the running trials, None where none is known."""
    left = sum(trial.settings.steps - progress[trial.id][0] for trial in sweep.trials
               if by_files[trial.id] not in SETTLED)
    speed = 0.0
    for trial in sweep.trials:
        if by_files[trial.id] == 'running' and progress[trial.id][0]:
            speeds = [record['tokens_per_second'] for record in records.read(trial.directory)
                      if (record.get('tokens_per_second') or 0) > 0]
            speed += speeds[-1] / (trial.settings.data.batch * trial.settings.data.context) if speeds else 0.0
    return left / speed if speed > 1e-9 else None


def summary(status):
    """Returns the line of counts by state and the time left."""
    counts = {state: list(status.states.values()).count(state) for state in COLOURS}
    text = ', '.join(f'{count} {state}' for state, count in counts.items() if count)
    return text if status.seconds is None else f'{text}; {clock(status.seconds)} left'


def best_loss(status, trial):
    """Returns the lowest recorded loss of a trial, None without any."""
    return min((loss for loss in status.progress[trial.id][1].values() if loss is not None), default=None)


def record_age(trial):
    """Returns the seconds since a trial's last record, by its file's time and this machine's clock; 0 without one."""
    try:
        return max(0.0, time.time() - (trial.directory / records.RECORD).stat().st_mtime)
    except OSError:
        return 0.0


def ranked(sweep, status):
    """Returns the trials that have a loss, the lowest first."""
    return sorted((trial for trial in sweep.trials if best_loss(status, trial) is not None),
                  key=lambda trial: best_loss(status, trial))


def _table(sweep, status):
    from rich import box, console, table
    drawn = table.Table('trial', 'state', 'step', 'last record', 'best loss', 'overrides', box=box.SIMPLE_HEAD)
    ranks = {trial.id: rank for rank, trial in enumerate(ranked(sweep, status))}
    rows = sorted(sweep.trials, key=lambda t: (ORDER.index(status.states[t.id]), ranks.get(t.id, len(ranks))))
    for trial in rows[:30]:
        state, loss = status.states[trial.id], best_loss(status, trial)
        drawn.add_row(trial.id, state, f'{status.progress[trial.id][0]:,}/{trial.settings.steps:,}',
                      f'{clock(record_age(trial))} ago' if state == 'running' else '',
                      '' if loss is None else f'{loss:.4f}', shown(trial), style=COLOURS[state])
    best = [f'best {best_loss(status, trial):.4f}: {shown(trial)}' for trial in ranked(sweep, status)[:1]]
    return console.Group(drawn, *best, summary(status))
