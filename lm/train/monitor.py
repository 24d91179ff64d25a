"""What steps measured, read a step late and recorded: every so often, and where the loss jumps or is not finite."""
import time

import jax
import numpy as np

from lm.parallel import processes
from lm.train import noise_scale, spikes

FRESH = {'offset': 0, 'losses': [], 'noise': [0.0, 0.0]}  # what is kept with a checkpoint, as a run begins


class NotFinite(Exception):
    """`patience` updates in a row were skipped; `args[0]` is the first step (from 0) after them."""


def due(step, every):
    """Returns whether something done every so many steps, 0 for never, is due after a step."""
    return every > 0 and step % every == 0


class Log:
    """Reads the metrics of a step once the next is dispatched, so that the device never waits for the host."""

    def __init__(self, settings, run, stream, patient=True):
        self.settings, self.run = settings, run
        self.watch = spikes.Watch(settings, run, stream, patient)
        self.noise = noise_scale.Scale(settings.accumulate)
        self.rate = settings.optimizer.rate(settings.steps)
        self.begin(FRESH)

    def begin(self, meta):
        """Starts anew from what is kept with a checkpoint."""
        self.watch.begin(meta)
        self.noise.sums = meta['noise']
        self.pending, self.mark, self.bad, self.own, self.left = None, None, 0, 0.0, None

    def kept(self, meta):
        """Returns `meta` with what a later run goes on from."""
        return {**meta, 'losses': list(self.watch.losses), 'noise': self.noise.sums}

    def push(self, step, measured):
        """Takes the metrics of a step, and reads those of the step before."""
        if self.left:
            self.own += time.monotonic() - self.left
        pending, self.pending = self.pending, (step, measured)
        self.read(pending)
        self.left = time.monotonic()

    def flush(self, hasty=False):
        """Reads what is still to be read; `hasty` where there is no time to go back for anything."""
        self.watch.left = 0 if hasty else self.watch.left
        pending, self.pending = self.pending, None
        self.read(pending)
        self.left = None

    def read(self, pending):
        """Records (step, metrics) where that is due; raises NotFinite after `patience` bad steps."""
        if pending is None:
            return
        step, measured = pending
        values = {name: value.item() for name, value in jax.device_get(measured).items()}
        self.bad = values['bad']
        if 'grad_square' in values:
            square = values.pop('grad_square')
            if not self.bad:
                self.noise.take(square, values['grad_norm'] ** 2, values['weight'])
                values |= self.noise.value()
        self.run.writer.advance(step)
        if due(step, self.settings.cadence.log) or self.bad or step == self.settings.steps:
            self.run.writer.write(step, {**values, 'rate': float(self.rate(np.int32(step - 1))), **self.speed(step)})
        back = self.watch.see(step, values)
        if self.bad >= self.settings.patience or back:
            jax.block_until_ready(self.pending)
            raise spikes.Spike(step) if back else NotFinite(step)

    def speed(self, step):
        """Returns tokens per second since the last record, and what part of it the hosts themselves took."""
        now, before = time.monotonic(), self.mark
        own, self.own, self.mark = self.own, 0.0, (step, now)
        if before is None:
            return {}
        tokens = self.settings.data.batch * self.settings.data.context
        steps, seconds = step - before[0], now - before[1]
        return {'tokens_per_second': round(steps * tokens / seconds, 1),
                **processes.compare(own / steps, seconds / steps)}
