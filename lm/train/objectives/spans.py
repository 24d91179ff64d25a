"""Span corruption (T5, Raffel et al. 2019, arXiv:1910.10683, section 3.1.4; the R- and X-denoisers of UL2)."""
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp

from lm import config
from lm.train.objectives.objective import TokenObjective, row_keys


@dataclass(frozen=True)
class SpanCorruption(TokenObjective):
    """Cross entropy of spans that a row lacks: `rate` of its tokens, in spans of `span` tokens on average.

    A sentinel stands where each span was; the target is each sentinel with its span, and one more sentinel. Sentinel i
    is token vocab - 1 - i, one of the last `sentinels`. An EncoderDecoder reads the row with its encoder; a Decoder
    reads it as a prefix (model.prompt=bidirectional) and goes on with the target. Rows are of one text each
    (packing=windows); those whose tokens do not all count, count for nothing.
    """

    rate: config.Fraction = 0.15
    span: config.Positive = 3.0
    sentinels: config.Size = 100

    def __post_init__(self):
        super().__post_init__()
        if not 0 < self.rate < 1:
            raise config.Error(f'rate={self.rate} leaves nothing to read or to write; try rate=0.15.')

    def check(self, model):
        if not model.causal:
            raise config.Error('no token of the target sees a later one; try model.layer.attention.causal=true.')
        if model.continues and model.prompt != 'bidirectional':
            raise config.Error('SpanCorruption gives a Decoder the text as a prompt; set model.prompt=bidirectional.')

    def reserved(self, model):
        return range(model.vocab - self.sentinels, model.vocab)

    def sizes(self, length):
        """Returns (tokens that a row of `length` lacks, in how many spans)."""
        lost = min(max(round(length * self.rate), 1), length - 1)
        spans = min(max(round(lost / self.span), 1), lost, length - lost)
        if spans >= self.sentinels:
            raise config.Error(f'{spans} spans of a row of {length} tokens need as many sentinels and one; '
                               f'try objective.sentinels={spans + 1}.')
        return lost, spans

    def prepare(self, model, batch, key):
        if 'segments' in batch:
            raise config.Error('SpanCorruption cuts spans out of whole rows; try data.packing=windows.')
        text = batch['targets']
        source, target = jax.vmap(partial(self._corrupt, model.vocab - 1))(row_keys(key, len(text)), text)
        whole = jnp.min(batch.get('weights', jnp.ones(text.shape)), 1, keepdims=True)
        others = {name: x for name, x in batch.items() if name in ('source',)}
        if model.continues:
            row = jnp.concatenate([source, target], 1)
            counted = jnp.arange(row.shape[1] - 1) >= source.shape[1] - 1
            prefix = jnp.arange(row.shape[1] - 1) < source.shape[1]
            return {**others, 'inputs': row[:, :-1], 'targets': row[:, 1:], 'weights': counted * whole,
                    'prefix': jnp.broadcast_to(prefix, row[:, 1:].shape)}
        inputs = jnp.concatenate([jnp.full_like(target[:, :1], model.start), target[:, :-1]], 1)
        return {**others, 'encoder_inputs': source, 'inputs': inputs, 'targets': target,
                'weights': jnp.broadcast_to(whole, target.shape)}

    def _corrupt(self, last, key, tokens):
        """Returns (source [T - lost + spans], target [lost + spans + 1]) of a row of tokens [T]; last: sentinel 0.

        [8 3 5 7 2] without its second and fifth token gives [8 s0 5 7 s1] and [s0 3 s1 2 s2].
        """
        length = len(tokens)
        lost, spans = self.sizes(length)
        keys = jax.random.split(key)
        lengths = jnp.stack([_parts(keys[0], length - lost, spans), _parts(keys[1], lost, spans)], 1).reshape(-1)
        number = jnp.cumsum(jnp.zeros(length, jnp.int32).at[jnp.cumsum(lengths)[:-1]].add(1))
        gone, span = number % 2 == 1, number // 2
        first = gone & ~jnp.roll(gone, 1)  # a row begins with what is kept
        kept = ~gone | first
        source = jnp.zeros(length - lost + spans, tokens.dtype).at[jnp.where(kept, jnp.cumsum(kept) - 1, length)].set(
            jnp.where(first, last - span, tokens), mode='drop')
        rank = jnp.cumsum(gone) - 1 + span  # of its sentinel, where it is the first of a span
        target = jnp.full(lost + spans + 1, last - spans, tokens.dtype)
        target = target.at[jnp.where(gone, rank + 1, length * 2)].set(tokens, mode='drop')
        return source, target.at[jnp.where(first, rank, length * 2)].set(
            (last - span).astype(tokens.dtype), mode='drop')


def _parts(key, items, parts):
    """Returns the lengths [parts], 1 at least, of parts that add up to `items`, drawn evenly among all such."""
    starts = jax.random.permutation(key, jnp.arange(items - 1) < parts - 1)
    return jnp.bincount(jnp.cumsum(jnp.concatenate([jnp.zeros(1, bool), starts])), length=parts)
