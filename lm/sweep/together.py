"""Several trials in one program: the one loop over their states, which leaves of each what its own run would."""
import contextlib
import os

from lm import config
from lm.parallel import processes
from lm.sweep import vectors
from lm.sweep.stopping import Judged
from lm.train import lock, loop, runs, session


def train(sweep, chosen, cache):
    """Trains trials as one program as far as they go, and returns the ids of those that must go on alone.

    Raises loop.Preempted when asked to stop, after saving.
    """
    print(f'{len(chosen)} trials as one program, from {chosen[0].id} on', flush=True)
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.redirect_stdout(stack.enter_context(open(os.devnull, 'w'))))
        trials, monitors = _open(sweep, chosen, cache, stack)
        busy = {trial.id for trial in chosen} - {trial.id for trial in trials}
        if not trials:
            return busy
        data = trials[0].settings.data
        valid, program = data.open(cache, 'valid') if data.valid else None, vectors.program(trials)
        monitors[0].run.stop.install()
        try:
            state = loop.fit(program, monitors, valid)
        except loop.Preempted:
            if any(monitor.run.stop.asked for monitor in monitors):
                raise
            return busy | _not_finite(trials, monitors)
        if valid and any(monitor.open for monitor in monitors):
            loop.validate(program, monitors, valid, state)
        session.show(program, monitors, state)
    return busy | _not_finite(trials, monitors)


def _not_finite(trials, monitors):
    """Returns the ids of the trials that left as their updates were not finite: alone they go back to a checkpoint."""
    return {trial.id for trial, monitor in zip(trials, monitors, strict=True)
            if monitor.skipped >= trial.settings.patience}


def _open(sweep, chosen, cache, stack):
    """Returns the trials that no other process trains and their Monitors; their runs are closed with the stack."""
    stop, streams, trials, monitors = processes.Stop(), {}, [], []
    for trial in chosen:
        settings = trial.settings
        try:
            run = runs.Run(trial.directory, config.Experiment(settings, {}, sweep.directory / 'experiment.py'))
        except lock.Busy:
            continue
        stack.callback(run.close)
        run.stop = Judged(sweep, trial, stop)
        trials.append(trial)
        monitors.append(session.open_data(settings, run, cache, streams.get(settings.data.seed)))
        streams[settings.data.seed] = monitors[-1].stream
    return trials, monitors
