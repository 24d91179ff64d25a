"""Fetches step metrics one step late (the device never waits for the host), logs them, checks for NaNs and spikes."""
import time
from functools import partial

import jax
import numpy as np

from lm import records
from lm.parallel import processes
from lm.train import noise_scale, runs, spikes

FRESH = {'offset': 0, 'losses': [], 'noise': [0.0, 0.0]}  # what is saved with a checkpoint, at step 0


class NotFinite(Exception):
    """`patience` updates in a row were skipped; `args[0]` is the first step (from 0) after them."""


def due(step, every):
    """Returns whether something done every so many steps, 0 for never, is due after a step."""
    return every > 0 and step % every == 0


class Monitor:
    """One run as the loop sees it: its settings, directory and data, and what its steps measured.

    offset: batches by which the data is ahead of the step. skipped: updates skipped in a row. open: whether the run
    still trains; of several in one program, one that has left computes on and nothing of it is written.
    """

    def __init__(self, settings, run, stream):
        self.settings, self.run, self.stream, self.open = settings, run, stream, True
        self.detector = spikes.Detector(settings.diagnosis.spike)
        self.noise = noise_scale.Scale(settings.accumulate)
        self.rate = settings.optimizer.rate(settings.steps)
        self.begin(FRESH)

    def begin(self, meta):
        """Goes on from what was saved with a checkpoint."""
        self.offset, self.noise.sums = meta['offset'], meta['noise']
        self.detector.begin(meta['losses'])
        self.last_logged, self.skipped, self.host_seconds = None, 0, 0.0

    def restore(self, abstract):
        """Returns the State of the newest checkpoint, None for a new run; raises config.Error where its data differs.
        """
        fresh = {**FRESH, 'data': dict(self.stream.fingerprint)}
        state, meta = self.run.store.restore(abstract) or (None, fresh)
        runs.check_data(meta, fresh)
        if state is not None:
            if int(state.step) < self.run.reached:
                self.run.rewind(int(state.step))
            self.run.writer.tell(f'going on from step {int(state.step):,}')
        self.begin({**fresh, **meta})
        return state

    def save(self, step, state):
        """Starts to save a State with what a resumed run goes on from."""
        self.run.check_files()
        self.run.store.save(step, state, {'offset': self.offset, 'losses': list(self.detector.losses),
                                          'noise': self.noise.sums, 'data': dict(self.stream.fingerprint)})

    def record(self, step, values, host_seconds=0.0):
        """Takes {name: number} of a step and what the host took for it; raises NotFinite after `patience` bad steps."""
        settings, values = self.settings, dict(values)
        self.skipped, self.host_seconds = values['bad'], self.host_seconds + host_seconds
        if 'grad_square' in values:
            square = values.pop('grad_square')
            if not self.skipped:
                self.noise.take(square, values['grad_norm'] ** 2, values['weight'])
                values |= self.noise.value()
        self.run.writer.advance(step)
        if due(step, settings.cadence.log) or self.skipped or step == settings.steps:
            self.run.writer.write(step, {**values, 'rate': float(self.rate(np.int32(step - 1))), **self._speed(step)})
        if spike := self.detector.observe(values['loss']):
            record = spikes.describe({'step': step, **spike}, values, self.stream, step - 1 + self.offset)
            self.run.writer.tell(processes.decide(partial(spikes.keep, self.run.directory, record)))
        if self.skipped >= settings.patience:
            raise NotFinite(step)

    def _speed(self, step):
        """Returns tokens per second since the last record, and the share of it that the hosts themselves took."""
        now, before = time.monotonic(), self.last_logged
        host, self.host_seconds, self.last_logged = self.host_seconds, 0.0, (step, now)
        if before is None:
            return {}
        steps, seconds = step - before[0], now - before[1]
        tokens = self.settings.data.batch * self.settings.data.context
        return {'tokens_per_second': round(steps * tokens / seconds, 1),
                **processes.compare(host / steps, seconds / steps)}

    def validated(self, step, scores, compared):
        """Records validation scores, and keeps the best checkpoint by the loss of those `compared`, which are of the
        text that all validations read; speed is measured anew from here on.
        """
        loss = {} if compared is scores else {records.COMPARED: compared['loss']}
        self.run.writer.write(step, {**{f'valid/{name}': value for name, value in scores.items()}, **loss})
        self.run.store.score(step, compared['loss'])
        self.last_logged = step, time.monotonic()


class Readout:
    """The metrics of a program's steps, read once the next step is dispatched, and handed to each run's Monitor."""

    def __init__(self, program, monitors):
        self.program, self.monitors = program, monitors
        self.pending, self.host_since = None, None

    def push(self, step, metrics):
        """Takes the metrics of a step, and reads those of the step before."""
        host = time.monotonic() - self.host_since if self.host_since else 0.0
        before, self.pending = self.pending, (step, metrics)
        self._read(before, host)
        self.host_since = time.monotonic()

    def flush(self):
        """Reads the pending metrics."""
        before, self.pending = self.pending, None
        self._read(before, 0.0)
        self.host_since = None

    def _read(self, pending, host_seconds):
        if pending is None:
            return
        step, metrics = pending
        for monitor, own in zip(self.monitors, self.program.split(jax.device_get(metrics)), strict=True):
            if not monitor.open:
                continue
            try:
                monitor.record(step, {name: value.item() for name, value in own.items()}, host_seconds)
            except NotFinite:
                jax.block_until_ready(self.pending)
                if len(self.monitors) == 1:
                    raise
                monitor.open = False  # the others go on; on its own it can go back to its checkpoint
