"""The loop: steps over the data, saves and validates, for one run or several in one program."""
import collections
import contextlib

import jax
import numpy as np

from lm import config
from lm.data import loader
from lm.train.monitor import NotFinite, Readout, due

PREEMPTED = 75  # exit code of a run that saved because it was asked to stop: EX_TEMPFAIL, try again
RETRIES = 3  # rollbacks to one step


class Preempted(Exception):
    """Raised after a checkpoint was written because a stop was requested (SIGTERM, Ctrl-C, a sweep's rule)."""


def fit(program, monitors, valid=None):
    """Trains from the newest checkpoints to the last step, and returns the last state.

    `monitors` are those of the runs in the program, usually one; `valid` is the validation stream. A run alone that has
    `patience` updates in a row that are not finite goes back to its checkpoint and skips the batches up to there.
    """
    state, rollbacks = _begin(program, monitors), collections.Counter()
    for monitor in monitors:
        monitor.run.note_offset(_step(state), monitor.offset)
    while True:
        try:
            return _advance(program, monitors, valid, state)
        except NotFinite as fault:
            failed = fault.args[0]
        # The exception's traceback keeps the old state alive; restore only after it is gone, or both fill memory.
        state = _roll_back(program, monitors, failed, rollbacks)


def _begin(program, monitors):
    """Returns the state of the newest checkpoints, or that of new runs."""
    states = [monitor.restore(program.abstract) for monitor in monitors]
    if all(state is None for state in states):
        with program.context():
            return program.init()
    if len({None if state is None else int(state.step) for state in states}) > 1:
        raise config.Error('their checkpoints are not of one step; train each alone.')
    return program.join(states)


def _step(state):
    return int(np.ravel(jax.device_get(state.step))[0])


def _roll_back(program, monitors, failed, rollbacks):
    """Returns the state of the newest checkpoint, from which the batches up to those of step `failed` are skipped."""
    (monitor,) = monitors
    batch = failed + monitor.offset
    state = _begin(program, monitors)
    step = _step(state)
    rollbacks[step] += 1
    if rollbacks[step] > RETRIES:
        raise config.Error(f'the loss is not finite whichever batches follow step {step}; '
                           f'try optimizer.peak={program.settings.optimizer.peak / 3:.1g}.')
    monitor.offset = batch - step
    monitor.run.rewind(step)
    monitor.run.note_offset(step, monitor.offset)
    return state


def _advance(program, monitors, valid, state):
    """Returns the state after the last step; raises NotFinite, and Preempted when no run is left."""
    steps, cadence, start = program.settings.steps, program.settings.cadence, _step(state)
    if start >= steps:
        return state
    readout = Readout(program, monitors)
    with program.context(), contextlib.closing(loader.prefetch(program.feed(monitors), start)) as batches:
        for step, batch in batches:
            state, metrics = program.step(state, batch)
            done, last = step + 1, step + 1 == steps
            readout.push(done, metrics)
            stopping = [monitor for monitor in monitors if monitor.open and monitor.run.stop.reached(done)]
            saving = monitors if last or due(done, cadence.save) else stopping
            validating = valid and not last and due(done, cadence.eval)
            if saving or validating:
                readout.flush()
            for monitor, own in zip(monitors, program.split(state), strict=True) if saving else ():
                if monitor.open and monitor in saving and (last or monitor in stopping or not monitor.skipped):
                    monitor.save(done, own)
            for monitor in stopping:
                monitor.open = False
            if stopping and not any(monitor.open for monitor in monitors):
                raise Preempted
            if validating:
                validate(program, monitors, valid, state)
            if last or not any(monitor.open for monitor in monitors):
                break
    for monitor in monitors:
        monitor.stream.verify()
        monitor.run.store.wait()
    return state


def validate(program, monitors, valid, state):
    """Records the validation scores of all runs, on all batches after the last step, and returns [{name: value}].

    The best checkpoint is that of the least loss on the batches that all validations read.
    """
    step, first = _step(state), program.settings.cadence.eval_batches
    whole = step >= program.settings.steps
    scores = program.score(state, valid, 0 if whole else first)
    compared = program.score(state, valid, first) if whole and 0 < first < valid.batches else scores
    for monitor, values, same_text in zip(monitors, scores, compared, strict=True):
        if monitor.open:
            monitor.validated(step, values, same_text)
    return scores
