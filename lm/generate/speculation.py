"""Speculative decoding (Leviathan et al. 2023, arXiv:2211.17192) by a model's own drafts: see MultiTokenDecoder.

A pass of the trunk reads a token that is drawn and the drafts of those behind it. Draft d, drawn with probability q(d)
where the trunk gives it p(d), passes with probability min(1, p(d) / q(d)); in place of the first that does not, a token
is drawn from max(p - q, 0), and behind them all from p. What is drawn is distributed as without drafts.
"""
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lm.generate.sampler import row_keys, seen_in
from lm.parallel import sharding


class Speculation(NamedTuple):
    """A generation under way: the cache of all tokens but the last, of texts [B S] with their prompts.

    logprobs, drafted [B S]: of each token its log-probability, and whether it was a draft. first [B]: where the texts
    begin behind the prompts. count: how many of their tokens were asked for so far. key [B], seen [B V]: as a Decoding
    has them.
    """

    cache: Any
    text: jax.Array
    logprobs: jax.Array
    drafted: jax.Array
    first: jax.Array
    count: jax.Array
    key: jax.Array
    seen: jax.Array


@partial(jax.jit, static_argnums=(0, 1))
def begin(model, slots, params, prompts, key):
    """Returns the Speculation after `prompts`; arguments as of sampling.begin."""
    tokens, lengths, _ = prompts
    cache = model.open(params, tokens, lengths, slots)
    empty = jnp.zeros((len(tokens), slots))
    return Speculation({**cache, 'length': lengths - 1}, empty.astype(jnp.int32).at[:, :tokens.shape[1]].set(tokens),
                       empty, empty.astype(bool), lengths, jnp.int32(0), row_keys(key, len(tokens)),
                       seen_in(*prompts, model.vocab))


@partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=4)
def extend(model, sampler, count, params, now):
    """Returns (speculation, tokens, logprobs, drafted [B count]) after `count` more tokens a row; see sampling.extend.

    A row that has as many waits for the others: what it draws depends on none of them.
    """
    goal = now.first + now.count + count

    def short(now):
        return now.cache['length'] + 1 < goal
    now = jax.lax.while_loop(lambda now: jnp.any(short(now)),
                             lambda now: _advance(model, sampler, params, now, short(now)), now)
    at = (goal - count)[:, None] + jnp.arange(count)
    parts = (sharding.constrain(_take(part, at), None, None) for part in (now.text, now.logprobs, now.drafted))
    return now._replace(count=now.count + count), *parts


def _advance(model, sampler, params, now, short):
    """Returns the Speculation after one pass of the trunk, with new tokens in the rows that are `short` [B] of some."""
    length, rows = now.cache['length'], jnp.arange(len(now.text))
    drafts, chances, seen, cache = _draft(model, sampler, params, now)
    logits, cache = model.verify(params, jnp.concatenate([_take(now.text, length[:, None]), drafts], 1), cache)
    true = jnp.stack([sampler.probabilities(logits[:, k], seen[k]) for k in range(model.ahead + 1)], 1)
    place = length[:, None] + 1 + jnp.arange(model.ahead + 1)
    uniform = jax.vmap(lambda place: jax.vmap(jax.random.uniform)(_keys(now.key, place, 1)), 1, 1)(place[:, :-1])
    passed = jnp.cumprod(uniform * _chosen(chances, drafts) < _chosen(true[:, :-1], drafts), 1).sum(1)
    rest = jnp.concatenate([jnp.maximum(true[:, :-1] - chances, 0), true[:, -1:]], 1)
    rest, own = rest[rows, passed], true[rows, passed]
    rest = jnp.where(jnp.sum(rest, -1, keepdims=True) > 0, rest, own)  # equal but for rounding
    last = jax.vmap(jax.random.categorical)(_keys(now.key, length + 1 + passed, 2), jnp.log(rest))
    tokens = jnp.pad(drafts, ((0, 0), (0, 1))).at[rows, passed].set(last.astype(drafts.dtype))
    passed = jnp.where(short, passed, -1)

    def write(whole, part):
        return whole.at[rows[:, None], place].set(part)  # those behind the last are overwritten before they are read
    drafted = jnp.arange(model.ahead + 1) < passed[:, None]
    kept = jnp.arange(model.ahead + 1) <= passed[:, None]
    return now._replace(
        cache={**cache, 'length': length + 1 + passed}, text=write(now.text, tokens),
        logprobs=write(now.logprobs, _chosen(jax.nn.log_softmax(logits), tokens)), drafted=write(now.drafted, drafted),
        seen=now.seen.at[rows[:, None], tokens].max(kept))


def _draft(model, sampler, params, now):
    """Returns (drafts [B K], their distributions [B K V], [K + 1] tokens seen before each and behind all, cache).

    Modules read twice `ahead` tokens: those since the last pass, and before it those that rejected drafts stood behind.
    """
    index = jnp.maximum(now.cache['length'][:, None] + jnp.arange(-2 * model.ahead, 0), 0)
    x, cache, text = _take(now.cache['states'], index), now.cache, now.text
    drafts, chances, seen = [], [], [now.seen]
    rows = jnp.arange(len(text))
    for number in range(1, model.ahead + 1):
        logits, x, cache = model.draft(params, number, x, _take(text, index + number), cache=cache, index=index)
        place = now.cache['length'] + number
        chances.append(sampler.probabilities(logits, seen[-1]))
        drafts.append(jax.vmap(jax.random.categorical)(_keys(now.key, place, 0), jnp.log(chances[-1])))
        text = text.at[rows, place].set(drafts[-1].astype(text.dtype))
        seen.append(seen[-1].at[rows, drafts[-1]].set(True))
    return jnp.stack(drafts, 1).astype(text.dtype), jnp.stack(chances, 1), seen, cache


def _keys(key, place, use):
    """Returns keys [B] of rows' keys [B] for tokens at `place` [B]: 0 to draft, 1 to judge and 2 to replace them."""
    return jax.vmap(lambda key, place: jax.random.fold_in(jax.random.fold_in(key, place), use))(key, place)


def _take(x, index):
    """Returns x [B S ...] at index [B T], the last slot for those behind it."""
    return jax.vmap(partial(jnp.take, axis=0, mode='clip'))(x, index)


def _chosen(x, tokens):
    """Returns x [B T V] at tokens [B T]."""
    return jnp.take_along_axis(x, tokens[..., None], -1)[..., 0]


def tokens_a_pass(samples):
    """Returns how many tokens of Samples a pass of the trunk gave on average; each pass gives one that is no draft."""
    passes = sum(len(sample.drafted) - sum(sample.drafted) + sample.drafted[-1] for sample in samples if sample.drafted)
    return sum(len(sample.drafted) for sample in samples) / max(passes, 1)
