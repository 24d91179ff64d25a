"""What every model answers: training, planning and generation ask it and never read its fields."""
import abc
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from lm import config
from lm.models.embedding import padded
from lm.nn.weights import apply, normal, unbox, weight


class Auxiliary(NamedTuple):
    """What a model adds to a loss, already weighted, and what it measured, {name: scalar}."""

    loss: jax.Array | float
    metrics: dict


class Model(abc.ABC):
    """Base of models, frozen dataclasses with a number `vocab` of tokens.

    An objective may ask for more: NextToken for token_losses(params, batch, key, smoothing) -> (nll, log_z, Auxiliary),
    generation for prefill and decode(params, tokens, cache), see Decoder; `lm coord-check` for activations(params,
    tokens), speed and plans for flops(context).
    """

    causal = True  # whether no token sees a later one
    continues = True  # whether what it generates goes on with the prompt, rather than answers it
    limit = 0  # the most tokens a text may have, 0 for any number
    ahead = 0  # how many tokens behind the next one it drafts for speculative decoding, see MultiTokenDecoder

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

    def prefill(self, params, tokens, lengths, slots):
        """Returns (logits [B V] after prompts [B T] of lengths [B], cache with `slots` slots); here config.Error."""
        raise config.Error(f'{type(self).__name__} writes no text; try a run of a Decoder, EncoderDecoder or TextVae.')


class TokenModel(Model):
    """Base of models with fields `vocab`, `width`, `embedding`, `head` and `execution`: tokens in, a head's logits out.
    """

    @property
    def padded_vocab(self):
        """The rows of the output layer: the vocabulary in whole lanes."""
        return padded(self.vocab, self.execution.vocab_chunks)

    @property
    def limit(self):
        """The most tokens a text may have, 0 for any number."""
        return self.embedding.limit

    def rows_of(self, cache, rows):
        """Returns the cache of a `prefill` or `decode` with other rows: those of the numbers `rows` [B']."""
        return {name: jax.tree.map(lambda x, axis=int(name == 'entries'): jnp.take(x, rows, axis), part)
                for name, part in cache.items()}  # entries are [L B ...]

    def _table(self, scope):
        """Returns the embedding's table, a Weight [V D]."""
        axes = {'vocab': self.padded_vocab, 'embed': self.width}
        return weight(scope, 'tokens', axes, normal(0.02), self.execution.dtype)

    def _output(self, scope):
        """Returns the head's matrix, a Weight: the table where they are tied, else [D V]."""
        if self.head.tied:
            return self._table(scope)
        axes = {'embed': self.width, 'vocab': self.padded_vocab}
        return weight(scope, 'output', axes, normal(0.02), self.execution.dtype)

    _shrink = 1.0  # factor of what the head multiplies, by which muP keeps logits of one size

    def _scores(self, params, x):
        """Returns logits [B T V] in float32 of the last x [B T D]."""
        logits = apply(lambda scope: self.head(scope, x, self._output(scope), self._shrink), params)
        return logits[..., :self.vocab].astype(jnp.float32)

    def _cross_entropy(self, params, x, targets, smoothing):
        """Returns (nll, log_z) [B T] in nats of targets [B T]."""
        return apply(lambda scope: self.head.cross_entropy(
            scope, x, self._output(scope), targets, shrink=self._shrink, vocab=self.vocab,
            chunks=self.execution.vocab_chunks, smoothing=smoothing), params)


@functools.lru_cache(64)  # asked for many times a program; each asks for a trace of declare
def _axes(model):
    return unbox(jax.eval_shape(model.declare, jax.random.key(0)))[1]
