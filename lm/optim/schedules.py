"""Learning-rate schedules: a warm-up, then a curve from 1 down to a fraction of the peak.

With `warmup` = w, step s (from 0) has the rate peak * (s + 1) / (w + 1) until it reaches the peak at step w, so that no
step is wasted on a rate of zero. With w = 0 the first step is at the peak.
"""
import abc
import dataclasses

import jax.numpy as jnp

from lm import config


@dataclasses.dataclass(frozen=True)
class Schedule(abc.ABC):
    """A learning rate over the steps of a run; `warmup` counts the steps before the peak."""

    warmup: config.Count = 0

    def __post_init__(self):
        config.check(self)

    def make(self, peak, steps):
        """Returns an optax schedule: step (an integer or array of them) -> rate, a float32 scalar.

        Raises config.Error when the run of `steps` ends before the warm-up does.
        """
        self.check(steps)

        def rate(step):
            step = jnp.asarray(step, jnp.float32)
            ramp = (step + 1) / (self.warmup + 1)
            return peak * jnp.minimum(ramp, self.curve(step, steps))
        return rate

    def check(self, steps):
        """Raises config.Error when the schedule does not fit into `steps`."""
        if self.warmup > steps:
            raise config.Error(f'warmup={self.warmup} is more than steps={steps}; try warmup={steps // 10}.')

    @abc.abstractmethod
    def curve(self, step, steps):
        """Returns the fraction of the peak at float32 `step`: 1 until the warm-up ends, at most 1 after it."""

    def progress(self, step, steps):
        """Returns how far `step` is from the end of the warm-up (0) to the end of the run (1)."""
        return jnp.clip((step - self.warmup) / max(steps - self.warmup, 1), 0, 1)


@dataclasses.dataclass(frozen=True)
class Constant(Schedule):
    """The peak for the whole run."""

    def curve(self, step, steps):
        return jnp.ones_like(step)


@dataclasses.dataclass(frozen=True)
class Linear(Schedule):
    """A straight line from the peak to `end`, a fraction of it."""

    end: config.Fraction = 0.0

    def curve(self, step, steps):
        return 1 - (1 - self.end) * self.progress(step, steps)


@dataclasses.dataclass(frozen=True)
class Cosine(Schedule):
    """Half a cosine from the peak to `end`, a fraction of it (Loshchilov and Hutter 2016, arXiv:1608.03983)."""

    end: config.Fraction = 0.1

    def curve(self, step, steps):
        return self.end + (1 - self.end) * 0.5 * (1 + jnp.cos(jnp.pi * self.progress(step, steps)))


@dataclasses.dataclass(frozen=True)
class WSD(Schedule):
    """Warm-up, stable, decay: the peak, then a fall to `end` over the last fraction `cooldown` of the steps.

    The fall is 1 - progress ** power: a straight line at power 1, and at 0.5 the '1-sqrt' that Hägele et al. 2024
    (arXiv:2405.18392) found best. The schedule is MiniCPM's (Hu et al. 2024, arXiv:2404.06395).
    """

    cooldown: config.Fraction = 0.2
    end: config.Fraction = 0.0
    power: config.Positive = 1.0

    def check(self, steps):
        super().check(steps)
        if self.warmup + self.cooldown * steps > steps:
            raise config.Error(f'warmup={self.warmup} and cooldown={self.cooldown} overlap in steps={steps}; '
                               f'try warmup={int((1 - self.cooldown) * steps)}.')

    def curve(self, step, steps):
        length = max(self.cooldown * steps, 1)
        progress = jnp.clip((step - (steps - length)) / length, 0, 1)
        return 1 - (1 - self.end) * progress ** self.power


@dataclasses.dataclass(frozen=True)
class InverseSqrt(Schedule):
    """The peak times sqrt((warmup + 1) / (step + 1)) after the warm-up (Vaswani et al. 2017, arXiv:1706.03762)."""

    def curve(self, step, steps):
        return jnp.sqrt((self.warmup + 1) / (jnp.maximum(step, self.warmup) + 1))
