"""Samplers: how a token is drawn from its logits."""
from dataclasses import dataclass
from functools import partial
from typing import Annotated

import jax
import jax.numpy as jnp

from lm import config


@dataclass(frozen=True)
class Sampler:
    """How the next token is drawn: a temperature of 0 takes the likeliest, the rest says among which tokens.

    top_k: that many, the likeliest (0: all). top_p: the smallest set with that probability (Holtzman et al. 2019).
    min_p: those at least that fraction as likely as the likeliest (Nguyen et al. 2024). repetition: logits of tokens
    seen are divided by it where positive and multiplied where negative (Keskar et al. 2019).
    """

    temperature: config.NonNegative = 1.0
    top_k: config.Count = 0
    top_p: Annotated[float, config.Interval(0, 1, '(]')] = 1.0
    min_p: config.Fraction = 0.0
    repetition: config.Positive = 1.0

    def __post_init__(self):
        config.check(self)

    def adjust(self, logits, seen):
        """Returns logits [B V] with unwanted tokens at -inf; `seen` [B V] marks the tokens of the text so far."""
        if self.repetition != 1:
            penalised = jnp.where(logits > 0, logits / self.repetition, logits * self.repetition)
            logits = jnp.where(seen, penalised, logits)
        if not self.temperature:
            return logits
        logits = logits / self.temperature
        if self.top_k:
            kth = jax.lax.top_k(logits, min(self.top_k, logits.shape[-1]))[0][:, -1:]
            logits = jnp.where(logits < kth, -jnp.inf, logits)
        if self.top_p < 1:
            ordered = jnp.sort(logits, -1, descending=True)
            chances = jax.nn.softmax(ordered)
            inside = jnp.cumsum(chances, -1) - chances < self.top_p
            least = jnp.min(jnp.where(inside, ordered, jnp.inf), -1, keepdims=True)
            logits = jnp.where(logits < least, -jnp.inf, logits)
        if self.min_p:
            floor = jnp.max(logits, -1, keepdims=True) + jnp.log(self.min_p)
            logits = jnp.where(logits < floor, -jnp.inf, logits)
        return logits

    def probabilities(self, logits, seen):
        """Returns the probabilities [B V] of what is drawn by logits [B V] and `seen` [B V], see `adjust`."""
        logits = self.adjust(logits, seen)
        if not self.temperature:
            return jax.nn.one_hot(jnp.argmax(logits, -1), logits.shape[-1])
        return jax.nn.softmax(logits)

    def draw(self, logits, key):
        """Returns one token a row [B] from adjusted logits [B V] and a key per row [B]."""
        if not self.temperature:
            return jnp.argmax(logits, -1).astype(jnp.int32)
        return jax.vmap(jax.random.categorical)(key, logits).astype(jnp.int32)


def row_keys(key, count):
    """Returns a key for each of `count` rows [B], so that what a row draws does not depend on those beside it."""
    return jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(count))


def seen_in(tokens, lengths, unseen, vocab):
    """Returns which tokens are in each prompt [B V], of tokens [B T] of lengths [B] without the first `unseen`."""
    rows, width = tokens.shape
    real = (jnp.arange(width) >= unseen) & (jnp.arange(width) < lengths[:, None])
    return jnp.zeros((rows, vocab), bool).at[jnp.arange(rows)[:, None], tokens].max(real)
