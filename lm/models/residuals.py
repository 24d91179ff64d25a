"""How sublayers, norms and the residual stream are wired: one frozen dataclass each."""
import abc
from dataclasses import dataclass

from lm import config


@dataclass(frozen=True)
class Residual(abc.ABC):
    """Base of the ways in which a sublayer f, a norm and the residual stream x are wired.

    `norm(suffix)` declares a norm, a Normaliser; f(x, norm or None) -> (y, extra) applies it to its input, so that
    attention can recompute it with its projections, late (memory.checkpoint_late).
    """

    normalised = False  # whether the stream leaves a layer normalised, so that no norm follows the last

    def __post_init__(self):
        config.check(self)

    @abc.abstractmethod
    def branch(self, f, x, norm):
        """Returns (what f adds to the stream, extra)."""

    def join(self, x, y, norm):
        """Returns the stream x with y added."""
        return x + y


@dataclass(frozen=True)
class PreNorm(Residual):
    """x + f(norm(x)): GPT-2, Llama."""

    def branch(self, f, x, norm):
        return f(x, norm('norm'))


@dataclass(frozen=True)
class PostNorm(Residual):
    """norm(x + f(x)): the original Transformer (Vaswani et al. 2017), BERT."""

    normalised = True

    def branch(self, f, x, norm):
        return f(x, None)

    def join(self, x, y, norm):
        return norm('norm')(x + y)


@dataclass(frozen=True)
class OutputNorm(Residual):
    """x + norm(f(x)): OLMo 2."""

    def branch(self, f, x, norm):
        y, extra = f(x, None)
        return norm('post_norm')(y), extra


@dataclass(frozen=True)
class SandwichNorm(Residual):
    """x + norm(f(norm(x))): Gemma 2 and 3."""

    def branch(self, f, x, norm):
        y, extra = f(x, norm('norm'))
        return norm('post_norm')(y), extra
