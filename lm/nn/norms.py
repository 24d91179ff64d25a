"""Norms over the last axis, one frozen dataclass each."""
import abc
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from flax import struct

from lm import config
from lm.nn.weights import fill, weight


@dataclass(frozen=True)
class Norm(abc.ABC):
    """Base of the norms over the last axis, computed in float32 and returned in x's dtype."""

    def __post_init__(self):
        config.check(self)

    @abc.abstractmethod
    def weights(self, scope, name, size):
        """Returns the parameters of a norm `name` over `size` numbers, a tuple of float32 arrays [size]."""

    @abc.abstractmethod
    def normalise(self, x, weights):
        """Returns x [... D] normalised with these parameters."""

    def bind(self, scope, name, size):
        """Returns the norm with parameters of its own, a Normaliser."""
        return Normaliser(self.weights(scope, name, size), self)

    def __call__(self, scope, name, x):
        """Returns x [... D] normalised, with parameters of its own."""
        return self.bind(scope, name, x.shape[-1])(x)


@dataclass(frozen=True)
class NoNorm(Norm):
    """No norm: x as it is."""

    def weights(self, scope, name, size):
        return ()

    def normalise(self, x, weights):
        return x


@dataclass(frozen=True)
class RMSNorm(Norm):
    """x over its root mean square, times a scale (Zhang and Sennrich 2019, arXiv:1910.07467)."""

    epsilon: config.Positive = 1e-5

    def weights(self, scope, name, size):
        return (weight(scope, f'{name}_scale', {'norm': size}, fill(1.0)).value,)

    def normalise(self, x, weights):
        return (_standardise(x, False, self.epsilon) * weights[0]).astype(x.dtype)


@dataclass(frozen=True)
class LayerNorm(Norm):
    """x less its mean over its deviation, times a scale, plus a bias if any (Ba et al. 2016, arXiv:1607.06450)."""

    epsilon: config.Positive = 1e-5
    bias: bool = True

    def weights(self, scope, name, size):
        scale = weight(scope, f'{name}_scale', {'norm': size}, fill(1.0)).value
        return (scale, weight(scope, f'{name}_bias', {'norm': size}, fill(0.0)).value) if self.bias else (scale,)

    def normalise(self, x, weights):
        scale, *bias = weights
        return sum(bias, start=_standardise(x, True, self.epsilon) * scale).astype(x.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _standardise(x, centred, epsilon):
    """Returns x [... D] over its root mean square, less its mean first if `centred`, in float32.

    The gradient keeps x as it came, in half of the bytes of the result where x is bfloat16, and two numbers a row.
    """
    return _standardise_forward(x, centred, epsilon)[0]


def _standardise_forward(x, centred, epsilon):
    wide = x.astype(jnp.float32)
    mean = jnp.mean(wide, -1, keepdims=True) if centred else jnp.zeros((), jnp.float32)
    inverse = jax.lax.rsqrt(jnp.mean(jnp.square(wide - mean), -1, keepdims=True) + epsilon)
    return (wide - mean) * inverse, (x, mean, inverse)


def _standardise_backward(centred, epsilon, residuals, g):
    x, mean, inverse = residuals
    y = (x.astype(jnp.float32) - mean) * inverse
    along = y * jnp.mean(g * y, -1, keepdims=True)
    return ((inverse * (g - along - (jnp.mean(g, -1, keepdims=True) if centred else 0))).astype(x.dtype),)


_standardise.defvjp(_standardise_forward, _standardise_backward)


@struct.dataclass
class Normaliser:
    """A norm with its parameters: x [... D] -> x."""

    weights: tuple
    norm: Norm = struct.field(pytree_node=False)

    def __call__(self, x):
        return self.norm.normalise(x, self.weights)
