"""What every model answers: training, planning and generation ask it and never read its fields."""
import abc
import functools
from typing import NamedTuple

import jax

from lm.nn.weights import unbox


class Auxiliary(NamedTuple):
    """What a model adds to a loss, already weighted, and what it measured, {name: scalar}."""

    loss: jax.Array | float
    metrics: dict


class Model(abc.ABC):
    """Base of models, frozen dataclasses with a number `vocab` of tokens.

    An objective may ask for more: NextToken for token_losses(params, batch, key, smoothing) -> (nll, log_z, Auxiliary),
    generation for prefill(params, tokens, lengths, slots) and decode(params, tokens, cache), see Decoder; `lm
    coord-check` for activations(params, tokens), speed and plans for flops(context).
    """

    causal = True  # whether no token sees a later one
    limit = 0  # the most tokens a text may have, 0 for any number

    @abc.abstractmethod
    def declare(self, key):
        """Returns the parameters drawn from key, a dict of nn.Weights; pure."""

    def init(self, key):
        """Returns the parameters, a dict of float32 arrays drawn from key."""
        return unbox(self.declare(key))[0]

    def axes(self):
        """Returns the logical axis names of every parameter, in a tree like that of the parameters."""
        try:
            return _axes(self)
        except TypeError:  # a model with a number that is traced, as in a sweep, has no hash
            return _axes.__wrapped__(self)

    def base_shapes(self):
        """Returns the abstract parameters of the muP base model, None where it is this one."""
        return None

    def post_update(self, params, metrics):
        """Returns (params, metrics) after a step, for what is learned without a gradient."""
        return params, metrics


@functools.lru_cache(64)  # asked for many times a program; each asks for a trace of declare
def _axes(model):
    return unbox(jax.eval_shape(model.declare, jax.random.key(0)))[1]
