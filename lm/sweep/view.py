"""A sweep in the terminal: trials by state, the best so far, and how long is left."""
import sys
import time

from lm import records
from lm.pages.text import clock
from lm.sweep import claims, search
from lm.sweep.trials import SETTLED, open_sweep, reason, shown, states

QUIET = 600  # seconds without a line of its record that are worth a word about a running trial
COLOURS = {'finished': 'green', 'running': 'cyan', 'failed': 'red', 'stopped': 'yellow', 'begun': '', 'new': ''}


def watch(directory):
    """Shows a sweep until it is done or interrupted; once where the output is no terminal."""
    sweep = open_sweep(directory)
    if not sys.stdout.isatty():
        show(sweep)
        return
    from rich import live
    desk = claims.Claims(sweep.directory)
    with live.Live(refresh_per_second=1) as screen:
        while True:
            sweep = open_sweep(directory)
            now = look(sweep, desk)
            screen.update(_table(sweep, now))
            if search.ended(sweep) and all(state in SETTLED for state in now['states'].values()):
                return
            time.sleep(claims.PERIOD)


def show(sweep):
    """Prints how a sweep stands: a line of counts, then the best trials, and some that failed with the reason."""
    now = look(sweep, claims.Claims(sweep.directory))
    print(summary(now), flush=True)
    for trial in ranked(sweep, now)[:5]:
        print(f'  {trial.id}  {best(now, trial):.4f}  {shown(trial)}', flush=True)
    silent = {trial.id: quiet(trial) for trial in sweep.trials if now['states'][trial.id] == 'running'}
    for trial, seconds in [each for each in silent.items() if each[1] > QUIET][:5]:
        print(f'  {trial}  running, and nothing new on its record for {clock(seconds)}', flush=True)
    failed = [trial for trial in sweep.trials if now['states'][trial.id] == 'failed']
    for trial in failed[:5]:
        print(f'  {trial.id}  failed  {shown(trial)}: {reason(trial)}', flush=True)


def look(sweep, desk):
    """Returns {'states', 'progress', 'seconds'}: of each trial its state and progress, and what is left in all."""
    found, progress = states(sweep)
    for trial, number in desk.newest().items():
        if found.get(trial) in ('new', 'begun') and desk.lives(trial, number):
            found[trial] = 'running'
    return {'states': found, 'progress': progress, 'seconds': _left(sweep, found, progress)}


def _left(sweep, found, progress):
    """Returns the seconds that the trials left take at the speed of those that run now; None where none is known."""
    left = sum(trial.settings.steps - progress[trial.id][0] for trial in sweep.trials if found[trial.id] not in SETTLED)
    speed = 0.0
    for trial in sweep.trials:
        if found[trial.id] == 'running':
            told = [each['tokens_per_second'] for each in records.read(trial.directory) if 'tokens_per_second' in each]
            speed += told[-1] / (trial.settings.data.batch * trial.settings.data.context) if told else 0.0
    return left / speed if speed else None


def summary(now):
    """Returns the line of counts by state and the time left."""
    counts = {state: list(now['states'].values()).count(state) for state in COLOURS}
    told = ', '.join(f'{count} {state}' for state, count in counts.items() if count)
    return told if now['seconds'] is None else f'{told}; {clock(now["seconds"])} left'


def best(now, trial):
    """Returns the lowest loss on a trial's record, or None."""
    return min((loss for loss in now['progress'][trial.id][1].values() if loss is not None), default=None)


def quiet(trial):
    """Returns for how many seconds a trial's record has not grown, by its file's clock and this one's; 0 without one.
    """
    try:
        return max(0.0, time.time() - (trial.directory / records.RECORD).stat().st_mtime)
    except FileNotFoundError:
        return 0.0


def ranked(sweep, now):
    """Returns the trials that have a loss, the lowest first."""
    return sorted((trial for trial in sweep.trials if best(now, trial) is not None),
                  key=lambda trial: best(now, trial))


def _table(sweep, now):
    from rich import box, console, table
    drawn = table.Table('trial', 'state', 'step', 'last record', 'best loss', 'overrides', box=box.SIMPLE_HEAD)
    first = {state: i for i, state in enumerate(('running', 'failed', 'finished', 'begun', 'stopped', 'new'))}
    order = {trial.id: i for i, trial in enumerate(ranked(sweep, now))}
    rows = sorted(sweep.trials, key=lambda each: (first[now['states'][each.id]], order.get(each.id, len(order))))
    for trial in rows[:30]:
        state, loss = now['states'][trial.id], best(now, trial)
        drawn.add_row(trial.id, state, f'{now["progress"][trial.id][0]}/{trial.settings.steps}',
                      f'{clock(quiet(trial))} ago' if state == 'running' else '',
                      '' if loss is None else f'{loss:.4f}', shown(trial), style=COLOURS[state])
    leading = [f'best {best(now, trial):.4f}: {shown(trial)}' for trial in ranked(sweep, now)[:1]]
    return console.Group(drawn, *leading, summary(now))
