"""Replays: steps of a run computed again from the checkpoint before them, compared with its record, and measured."""
import math
from functools import cached_property, partial
from pathlib import Path

import jax

from lm import config, records, train
from lm.debug.layers import largest, layer_stats
from lm.parallel import processes
from lm.train import checkpoint, feed, runs, spikes

STABLE = ('loss', 'grad_norm', 'weight', 'bad')  # metrics that are deterministic: the same each time a step is computed


def stable(values):
    """Returns those of {name: number} that a step measures the same each time it is computed."""
    return {name: values.get(name) for name in STABLE}


class Trajectory:
    """The recorded trajectory of a run, whose steps can be computed again by the program and from the data that trained
    it; nothing in its directory changes.

    `settings` may differ from the run's own in what affects no result (records.FREE). Steps count as in the record:
    step 1 takes the first batch, and the state "at" a step is the one after it, 0 the initial one.
    """

    def __init__(self, directory, settings, cache, mesh=None):
        self.directory, self.settings, self.cache = Path(directory), settings, cache
        self.records = records.intact(directory)
        self.program = train.program(settings, mesh)
        self.checkpoints = self.directory / 'checkpoints'

    @cached_property
    def stream(self):
        """The training data, as it is now."""
        return self.settings.data.open(self.cache, 'train')

    def starts(self, step):
        """Returns the steps at or before `step` at which the state is known, newest first; the last is 0.

        Checkpoints written before a rollback that skipped batches are not on the recorded trajectory.
        """
        return [saved for saved, meta in checkpoint.metas(self.checkpoints).items()
                if saved <= step and meta['offset'] == records.offset(self.records, saved - 1)] + [0]

    def restore(self, step):
        """Returns the State at one of `starts`."""
        if step:
            return checkpoint.restore(self.checkpoints, self.program.abstract, step)[0]
        with jax.set_mesh(self.program.mesh):
            return self.program.init()

    def check(self):
        """Raises config.Error where the data is no longer what the newest checkpoint was trained on."""
        if metas := checkpoint.metas(self.checkpoints):
            runs.check_data(next(iter(metas.values())), {'data': dict(self.stream.fingerprint)})

    def before_rollback(self, offset):
        """Takes the trajectory of the run when its data was ahead by `offset`, from which it was rolled back since."""
        offsets = [record for record in self.records if 'offset' in record]
        if records.offset(self.records, math.inf) != offset:
            while offsets and offsets[-1]['offset'] != offset:
                offsets.pop()
            self.records = offsets

    def number(self, step):
        """Returns the number of the batch that a step took."""
        return step - 1 + records.offset(self.records, step - 1)

    def batch(self, step):
        """Returns the batch that a step took, on the mesh."""
        return feed.serve(self.stream, self.program.mesh, self.number(step) - step + 1, step - 1)

    def step(self, state, step):
        """Returns (the State at `step`, {name: number, None if not finite}) from the State before it, which is donated.
        """
        with jax.set_mesh(self.program.mesh):
            state, metrics = self.program.step(state, self.batch(step))
        return state, records.finite({name: value.item() for name, value in jax.device_get(metrics).items()})

    def gradient(self, state, batch):
        """Returns the gradient that a step takes from a State and a batch, which stay as they are."""
        with jax.set_mesh(self.program.mesh):
            return jax.jit(train.parts(self.settings).gradient)(state, batch)[0]


def replay_step(trajectory, step):
    """Computes a step of a run again, measures its layers, and writes its record; prints how it compares.

    Returns whether all losses are those on record. Raises config.Error where the run's data has changed, or it has not
    come so far.
    """
    directory, known = trajectory.directory, spikes.read(trajectory.directory, step)
    last = max([record['step'] for record in trajectory.records if 'loss' in record], default=0)
    if not 1 <= step <= last:
        raise config.Error(f'step={step} is not one of the steps 1 to {last} that {directory} has on record; '
                           f'try --step={last}.')
    trajectory.check()
    expected = {record['step']: record['loss'] for record in trajectory.records if 'loss' in record}
    if known:
        expected[step] = known['loss']
        trajectory.before_rollback(known['batch'] - step + 1)
    start = trajectory.starts(step - 1)[0]
    print(f'computing step {step} again from {f"checkpoint {start}" if start else "the start"}.', flush=True)
    state, computed = trajectory.restore(start), {}
    for number in range(start + 1, step):
        state, values = trajectory.step(state, number)
        computed[number] = values['loss']
    rows = layer_stats(trajectory.settings, trajectory.program, state, trajectory.batch(step))
    _, values = trajectory.step(state, step)
    computed[step] = values['loss']
    about = known or {'step': step, 'loss': None, 'median': None, 'deviation': None}
    record = spikes.describe(about, values, trajectory.stream, trajectory.number(step), rows)
    processes.decide(partial(_write, directory, record))
    print('\n'.join([*compared(computed, expected), *largest(rows), f'record: {spikes.path(directory, step)}']))
    return all(computed[number] == expected[number] for number in computed.keys() & expected.keys())


def _write(directory, record):
    try:
        spikes.write(directory, record)
    except OSError as error:
        raise config.Error(f'cannot write {spikes.path(directory, record["step"])}: {error.strerror}; free some space '
                           'and run the same command again.') from error


def compared(computed, expected):
    """Returns the lines that say how {step: loss} computed again compares with what is on record, the last step first.
    """
    last = max(computed)
    fact = f'step {last}: loss {computed[last]} here'
    if last not in expected:
        lines = [f'{fact}; none is on record.']
    elif computed[last] == expected[last]:
        lines = [f'{fact} and on record, bit for bit.']
    else:
        lines = [f'{fact}, {expected[last]} on record.']
    before = [step for step in computed if step in expected and step != last]
    unequal = [step for step in before if computed[step] != expected[step]]
    if unequal:
        lines.append(f'before it, step {unequal[0]} is the first that differs from its record: other code, versions or '
                     'devices computed it.')
    elif before:
        lines.append(f'before it, {len(before)} loss{"es" * (len(before) > 1)} on record, equal bit for bit.')
    return lines
