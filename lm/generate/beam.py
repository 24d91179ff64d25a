"""Beam search: the likeliest text, of those that a few beams reach."""
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lm import config
from lm.generate import sampling

NEVER = -1e30  # score of a beam that is none


@dataclass(frozen=True)
class Beams:
    """How many `beams` are kept, and the length penalty ((5 + length) / 6)^alpha that their scores are divided by.

    Wu et al. 2016, arXiv:1609.08144, section 7; one beam is greedy.
    """

    beams: config.Size = 5
    alpha: config.NonNegative = 1.0

    def __post_init__(self):
        config.check(self)

    def penalised(self, score, length):
        """Returns scores of texts of `length` tokens, their sums of log-probabilities divided by the penalty."""
        return score / ((5 + length) / 6) ** self.alpha


class Search(NamedTuple):
    """A search under way: of each row its live beams, sorted, and the best text that has ended.

    tokens [B K T], score [B K]: of the beams; best_tokens [B T], best [B]: of the text, its penalised score. count:
    tokens so far. logits [B K V], cache: of the next token, entries of rows and beams [B K] in one axis.
    """

    count: jax.Array
    tokens: jax.Array
    score: jax.Array
    best_tokens: jax.Array
    best: jax.Array
    logits: jax.Array
    cache: Any


@partial(jax.jit, static_argnums=(0, 1), static_argnames=('end', 'length', 'slots'))
def search(model, how, params, prompts, *, end, length, slots):
    """Returns (tokens [B T], penalised scores [B]) of the best texts of at most `length` tokens, `end` behind theirs.

    `prompts` are (tokens [B S], lengths [B]), `slots` those of the cache. A text that has not
    ended by then counts as one that has.
    """
    logits, cache = model.prefill(params, *prompts, slots)
    rows, vocab = logits.shape

    spread = jnp.repeat(jnp.arange(rows), how.beams)
    state = Search(
        jnp.int32(0), jnp.full((rows, how.beams, length), end, jnp.int32),
        jnp.where(jnp.arange(how.beams) == 0, 0.0, NEVER) * jnp.ones((rows, 1)),
        jnp.full((rows, length), end, jnp.int32), jnp.full(rows, NEVER),
        logits[spread].reshape(rows, how.beams, vocab), model.rows_of(cache, spread))

    def unfinished(state):
        reachable = how.penalised(state.score[:, 0], length)  # scores fall, and the penalty forgives no more than this
        return (state.count < length) & jnp.any(state.best < reachable)

    def advance(state):
        total = state.score[..., None] + jax.nn.log_softmax(state.logits)
        least = jax.lax.top_k(total.reshape(rows, -1), how.beams)[0][:, -1:]  # an end has to be among the best itself
        ended = how.penalised(jnp.where(total[..., end] >= least, total[..., end], NEVER), state.count + 1)
        beam = jnp.argmax(ended, 1)
        better = jnp.max(ended, 1) > state.best
        text = jnp.take_along_axis(state.tokens, beam[:, None, None], 1)[:, 0]
        score, chosen = jax.lax.top_k(total.at[..., end].set(NEVER).reshape(rows, -1), how.beams)
        parents, token = chosen // vocab, chosen % vocab
        tokens = jnp.take_along_axis(state.tokens, parents[..., None], 1).at[:, :, state.count].set(token)
        order = (parents + how.beams * jnp.arange(rows)[:, None]).reshape(-1)
        logits, cache = model.decode(params, token.reshape(-1), model.rows_of(state.cache, order))
        return Search(state.count + 1, tokens, score, jnp.where(better[:, None], text, state.best_tokens),
                      jnp.where(better, jnp.max(ended, 1), state.best), logits.reshape(rows, how.beams, vocab), cache)
    state = jax.lax.while_loop(unfinished, advance, state)
    cut = how.penalised(state.score[:, 0], length)
    return jnp.where((state.best > cut)[:, None], state.best_tokens, state.tokens[:, 0]), jnp.maximum(state.best, cut)


def beam_search(model, params, encoder, prompts, how=None, *, prefix=(), length=None):
    """Returns the likeliest text after each of `prompts` that Beams `how` reach; other arguments as `generate`'s."""
    padded, lengths, slots, length = sampling.prepare(model, encoder, prompts, prefix, length)
    tokens, _ = jax.device_get(search(model, how or Beams(), params, (padded, lengths), end=encoder.eos,
                                      length=length, slots=slots))
    return [sampling.text_of(model, encoder, prompt, row[:int(np.argmax(np.append(row, encoder.eos) == encoder.eos))])
            for prompt, row in zip(prompts, tokens, strict=True)]
