"""Text infilling and permuted sentences (BART, Lewis et al. 2019, arXiv:1910.13461)."""
import math
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from scipy import optimize, special

from lm import config
from lm.train.objectives.conditional import Answer
from lm.train.objectives.objective import row_keys


@dataclass(frozen=True)
class TextInfilling(Answer):
    """Cross entropy of each document of a row, given what is left of it: a share `rate` of its tokens is gone, in spans
    of Poisson length with mean `span`, each behind one mask token, those of no token too where a
    row has room; spans that overlap are one.

    mask: id of the mask token, counted from the end of the vocabulary where negative. ends: ids of tokens that end a
    sentence, such as full stops: before any token goes, the sentences of a document get another order; what follows its
    last end stays behind them.
    """

    rate: config.FractionBelowOne = 0.3
    span: config.Positive = 3.0
    mask: int = -1
    ends: tuple[config.Count, ...] = ()

    def __post_init__(self):
        super().__post_init__()
        if self.rate and self._kept(1.0) > math.log1p(-self.rate):
            raise config.Error(f'rate={self.rate} is more than spans of span={self.span} tokens take; '
                               'try span=3.0.')

    def _kept(self, begins):
        """Returns the log of the chance that no span reaches a token, where one begins at each with this chance."""
        longer = special.pdtrc(np.arange(100 + 2 * self.span), self.span)  # than so many tokens: Poisson's tail
        return np.sum(np.log1p(-begins * np.minimum(longer, 1 - 1e-12)))

    def reserved(self, model):
        return (self.mask % model.vocab,)

    def prepare(self, model, batch, key):
        text = batch['targets']
        segments = batch.get('segments', jnp.ones_like(text))
        noise = partial(self._noise, self.reserved(model)[0])
        source, kept, positions = jax.vmap(noise)(row_keys(key, len(text)), text, segments)
        first = batch.get('positions', jnp.arange(text.shape[1])) == 0
        return {**batch, 'inputs': jnp.where(first, model.start, batch['inputs']), 'encoder_inputs': source,
                'encoder_segments': kept, 'encoder_positions': positions}

    def _noise(self, mask, key, tokens, segments):
        """Returns (tokens, segments, positions), all [T], of what is left of a row; padding has segment 0."""
        size = len(tokens)
        keys = jax.random.split(key)
        at, number = jnp.arange(size), jnp.cumsum(segments != jnp.roll(segments, 1))
        tokens = self._permuted(jax.random.fold_in(key, 2), tokens, number)
        chance = optimize.brentq(lambda chance: self._kept(chance) - math.log1p(-self.rate), 0, 1) if self.rate else 0
        begins = jax.random.uniform(keys[0], (size,)) < chance
        lengths = jax.random.poisson(keys[1], self.span, (size,))
        end = jax.ops.segment_max(at, number, size + 1)[number] + 1  # of the document
        stop = jax.lax.cummax(jnp.where(begins, jnp.minimum(at + lengths, end), 0))  # of spans that began up to here
        before = jnp.concatenate([jnp.zeros(1, stop.dtype), stop[:-1]])
        first = begins & (before <= at) & (segments > 0)
        gone = stop > at
        added = first & (lengths == 0)  # masks of no token, of which a row takes as many as it has room for
        room = jnp.sum(gone | (segments == 0)) - jnp.sum(first & ~added)
        rank = jnp.argsort(jnp.argsort(jnp.where(added, jax.random.uniform(jax.random.fold_in(key, 3), (size,)), 2)))
        first &= ~added | (rank < room)
        counts = first.astype(jnp.int32) + ~gone
        place = jnp.cumsum(counts) - counts

        def put(values, where, places):
            return jnp.zeros(size, jnp.int32).at[jnp.where(where, places, size)].set(values, mode='drop')
        kept = ~gone
        source = put(mask, first, place) + put(tokens, kept, place + first)
        segment = put(segments, first, place) + put(segments, kept, place + first)
        document = put(number, first, place) + put(number, kept, place + first)
        return source, segment, at - jax.ops.segment_min(at, document, size + 1)[document]

    def _permuted(self, key, tokens, document):
        """Returns a row's tokens [T] with the sentences of each document, numbers [T], in another order."""
        ends = jnp.isin(tokens, jnp.array(self.ends, jnp.int32))
        ended = jnp.cumsum(ends)
        sentence = ended - ends
        last = jax.ops.segment_max(ended, document, len(tokens) + 1)[document] == sentence
        order = jnp.where(last, 1, jax.random.uniform(key, tokens.shape)[sentence])
        return tokens[jnp.lexsort((jnp.arange(len(tokens)), order, document))]
