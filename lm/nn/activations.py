"""Elementwise nonlinearities, one frozen dataclass each: MLP(activation=Silu(), gated=True) is SwiGLU."""
import abc
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from lm import config


@dataclass(frozen=True)
class Activation(abc.ABC):
    """Base of the elementwise nonlinearities; one is a frozen dataclass with this call."""

    def __post_init__(self):
        config.check(self)

    @abc.abstractmethod
    def __call__(self, x):
        """Returns the activation of every entry of x."""

    def gate(self, gate, up):
        """Returns what a gated sublayer makes of the two that it projects to."""
        return self(gate) * up


@dataclass(frozen=True)
class Gelu(Activation):
    """x times the normal distribution function of x (Hendrycks and Gimpel 2016), by GPT-2's tanh unless `exact`."""

    exact: bool = False

    def __call__(self, x):
        return jax.nn.gelu(x, approximate=not self.exact)


@dataclass(frozen=True)
class Silu(Activation):
    """x times its sigmoid; gated it is SwiGLU (Shazeer 2020, arXiv:2002.05202)."""

    def __call__(self, x):
        return jax.nn.silu(x)


@dataclass(frozen=True)
class ClampedSilu(Activation):
    """x times the sigmoid of `steepness` x, x at most `limit`; gated by what is within it, plus 1: gpt-oss."""

    steepness: config.Positive = 1.702
    limit: config.Positive = 7.0

    def __call__(self, x):
        x = jnp.minimum(x, self.limit)
        return x * jax.nn.sigmoid(self.steepness * x)

    def gate(self, gate, up):
        return self(gate) * (jnp.clip(up, -self.limit, self.limit) + 1)


@dataclass(frozen=True)
class Relu(Activation):
    """x where it is positive, else 0."""

    def __call__(self, x):
        return jax.nn.relu(x)


@dataclass(frozen=True)
class Relu2(Activation):
    """The square of Relu (So et al. 2021, arXiv:2109.08668)."""

    def __call__(self, x):
        return jnp.square(jax.nn.relu(x))
