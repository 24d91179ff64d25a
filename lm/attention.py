"""Attention: one function, `attend`, over queries, keys and values, whatever the mask."""
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp

MASKED = -1e30
BLOCK = 128


@dataclass(frozen=True)
class View:
    """What each query sees, and how its scores are shaped.

    window: a query sees itself and window - 1 keys before it; 0 for all. softcap: scores become c * tanh(scores / c).
    segments: (of queries [B T], of keys [B S]): only equal ones see each other. index: the slots of the queries among
    the keys [B T], where they are not the same 0..T-1. bias: (query index [T], key index [S]) -> [N T S].
    """

    causal: bool = True
    window: int = 0
    softcap: float = 0.0
    scale: float | None = None
    segments: tuple | None = None
    index: jax.Array | None = None
    bias: Callable | None = None


def attend(query, key, value, view):
    """Returns the values [B T N H] that queries [B T N H] gather from keys and values [B S K H], K dividing N."""
    batch, length, heads, size = query.shape
    groups = key.shape[2]
    scale = size ** -0.5 if view.scale is None else view.scale
    query = jnp.moveaxis((query * scale).reshape(batch, length, groups, heads // groups, size), 1, 3)
    key, value = jnp.moveaxis(key, 1, 2), jnp.moveaxis(value, 1, 2)
    if view.index is not None or not view.causal or length <= BLOCK or length % BLOCK:
        mixed = _attend(query, key, value, view, (0, 0))
    else:
        blocks = []
        for start in range(0, length, BLOCK):
            stop = start + BLOCK
            first = max(0, start - view.window + 1) if view.window else 0
            seen = (..., slice(first, stop), slice(None))
            blocks.append(_attend(query[..., start:stop, :], key[seen], value[seen], view, (start, first)))
        mixed = jnp.concatenate(blocks, axis=3)
    return jnp.moveaxis(mixed, 3, 1).reshape(batch, length, heads, size)


def _attend(query, key, value, view, begin):
    """Returns attention [B K G T H] of a block of scaled queries [B K G T H] to a block of keys and values [B K S H].

    `begin` are the slots where the queries and the keys begin.
    """
    scores = jnp.einsum('BKGTH,BKSH->BKGTS', query, key, preferred_element_type=jnp.float32)
    if view.softcap:
        scores = view.softcap * jnp.tanh(scores / view.softcap)
    if view.bias is not None:
        scores = scores + _bias(view, begin, scores.shape)
    scores = jnp.where(_visible(view, begin, scores.shape[-2:]), scores, MASKED)
    weights = _softmax(scores).astype(value.dtype)
    return jnp.einsum('BKGTS,BKSH->BKGTH', weights, value)


@jax.custom_vjp
def _softmax(scores):
    """Returns softmax over the last axis; its gradient needs only the result."""
    return jax.nn.softmax(scores, axis=-1)


def _softmax_forward(scores):
    weights = jax.nn.softmax(scores, axis=-1)
    return weights, weights


def _softmax_backward(weights, g):
    return (weights * (g - jnp.sum(weights * g, axis=-1, keepdims=True)),)


_softmax.defvjp(_softmax_forward, _softmax_backward)


def _bias(view, begin, shape):
    """Returns the bias on scores of shape [B K G T S], as [1 or B, K, G, T, S]."""
    *_, length, keys = shape
    slots = begin[1] + jnp.arange(keys)
    if view.index is None:
        bias = view.bias(begin[0] + jnp.arange(length), slots)[None]
    else:
        bias = jax.vmap(lambda index: view.bias(index, slots))(view.index)
    return bias.reshape(-1, *shape[1:])


def _visible(view, begin, shape):
    """Returns which keys each query sees, broadcastable to [B K G T S] with (T, S) = shape."""
    (start, first), (length, keys) = begin, shape
    index = (start + jnp.arange(length))[None] if view.index is None else view.index
    ahead = index[:, :, None] - first - jnp.arange(keys)
    visible = ahead >= 0 if view.causal else jnp.ones_like(ahead, bool)
    if view.window:
        visible &= jnp.abs(ahead) < view.window
    if view.segments is not None:
        queries, others = view.segments
        visible &= queries[:, start:start + length, None] == others[:, None, first:first + keys]
    return visible[:, None, None]
