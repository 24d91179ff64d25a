"""Plain attention in XLA: all queries at once, or a block of them at a time over the keys that they can see."""
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp

from lm.nn.attention import masking

BLOCK = 128


def unsupported(query, key, spec, platform):
    """Returns why plain attention cannot be used, or None."""
    return 'the mesh shards the sequence, which only ring and splash attention support' if spec.zigzag else None


def reference(query, key, value, spec):
    """Returns attention [B T N H], computed over every pair of a query and a key at once."""
    return _grouped(query, key, value, spec, query.shape[1])


def attend(query, key, value, spec):
    """Returns attention [B T N H], computed a block of queries at a time where that leaves out keys.

    The gradient computes the scores again, so that [T S] is kept for no layer; but XLA of jax 0.10 merges the two on a
    CPU where layers are unrolled.
    """
    length = query.shape[1]
    cut = spec.causal and spec.prefix is None and spec.index is None and length % BLOCK == 0
    return _grouped(query, key, value, spec, BLOCK if cut else length)


def _grouped(query, key, value, spec, block):
    batch, length, heads, size = query.shape
    groups = key.shape[2]
    query = jnp.moveaxis(spec.scaled(query).reshape(batch, length, groups, heads // groups, size), 1, 3)
    key, value = jnp.moveaxis(key, 1, 2), jnp.moveaxis(value, 1, 2)
    if block == length:
        at = jnp.arange(length) if spec.index is None else spec.index
        mixed = _mix(masking.scores(query, key, spec, at, jnp.arange(key.shape[2])), value, spec.sink)
    else:
        def run(start):
            return jax.checkpoint(partial(_block, spec=spec, span=(start, start + block)))(query, key, value)
        mixed = jnp.concatenate([run(start) for start in range(0, length, block)], axis=3)
    return jnp.moveaxis(mixed, 3, 1).reshape(batch, length, heads, -1)


def _block(query, key, value, spec, span):
    """Returns attention [B K G t H] of the queries from span[0] to span[1] to the keys that they may see."""
    start, stop = span
    first = max(0, start - spec.window + 1) if spec.window else 0
    if spec.segments is not None:
        queries, keys = spec.segments
        spec = replace(spec, segments=(queries[:, start:stop], keys[:, first:stop]))
    at, among = jnp.arange(start, stop), jnp.arange(first, stop)
    return _mix(masking.scores(query[..., start:stop, :], key[..., first:stop, :], spec, at, among),
                value[..., first:stop, :], spec.sink)


def _mix(scores, value, sink):
    if sink is None:
        return jnp.einsum('BKGTS,BKSH->BKGTH', _softmax(scores).astype(value.dtype), value)
    column = jnp.broadcast_to(sink.reshape(*scores.shape[1:3], 1, 1), (*scores.shape[:-1], 1))
    weights = _softmax(jnp.concatenate([scores, column.astype(scores.dtype)], -1))[..., :-1]
    return jnp.einsum('BKGTS,BKSH->BKGTH', weights.astype(value.dtype), value)


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
