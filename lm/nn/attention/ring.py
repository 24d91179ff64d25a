"""Ring attention: each device keeps its queries while keys and values go round (Liu et al. 2023, arXiv:2310.01889).

A device holds two chunks of every row (masking.Zigzag), stacked on a leading axis here. Whatever the distance that keys
came, a causal mask then leaves exactly two pairs of chunks to compute on every device: the late queries see the early
keys, and either the early see the early or the late see the late.
"""
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp

from lm.nn.attention import masking

AXIS = 'context'
BLOCK = 512  # queries whose scores are held at a time


def unsupported(query, key, spec, platform):
    """Returns why ring attention cannot be used, or None."""
    if spec.prefix is not None:
        return 'it does not support a prefix that is seen from before it'
    if spec.sink is not None:
        return 'it does not support a sink'
    return None if spec.zigzag else 'no mesh axis shards the sequence; set mesh.context'


def attend(query, key, value, spec):
    """Returns attention [B T N H] of tokens in the order of spec.zigzag, their length split over the axis 'context'."""
    return masking.over_mesh(_local, query, key, value, spec)


def _local(query, key, value, spec):
    batch, length, heads, size = query.shape
    groups = key.shape[2]
    table, score = spec.bias or (None, None)
    query = spec.scaled(query).reshape(batch, 2, -1, groups, heads // groups, size)
    key, value = (x.reshape(batch, 2, -1, groups, size) for x in (key, value))
    segments = jax.tree.map(lambda x: jnp.moveaxis(x.reshape(batch, 2, -1), 1, 0), spec.segments)
    arrays = (jnp.einsum('BCTKGH->CBKGTH', query), *(jnp.einsum('BCSKH->CBKSH', x) for x in (key, value)), table)
    mixed = _ring(arrays, segments, replace(spec, segments=None, bias=None), score)
    return jnp.einsum('CBKGTH->BCTKGH', mixed).reshape(batch, length, heads, size)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _ring(arrays, segments, spec, score):
    """Returns attention [2 B K G T H] of arrays: scaled queries, keys and values [2 B K T H], and the bias's table."""
    return _forward(arrays, segments, spec, score)[0]


def _forward(arrays, segments, spec, score):
    query, key, value, table = arrays
    ring = _Ring(spec, key.shape[3])
    of_queries, of_keys = segments or (None, None)
    queries = (query, ring.slots(ring.rank), of_queries)

    def fold(state, keys, source, pairs):
        keys = (*keys, ring.slots(source))
        for i, j in pairs:
            part = _pair(_half(queries, i), _half(keys, j), table, spec, score)
            state = jax.tree.map(lambda x, new, i=i: x.at[i].set(new), state, _merge(_half(state, i), part))
        return state

    state = jnp.zeros(query.shape, jnp.float32), jnp.full((*query.shape[:-1], 1), masking.MASKED)
    state = fold(state, (key, value, of_keys), ring.rank, ring.own)
    for shift, first, last in ring.rotations():
        def hop(carry, step, shift=shift):
            state, keys = carry
            source = ring.source(shift, step)
            return (fold(state, keys, source, ring.pairs(source)), ring.send(keys, shift)), None
        keys = ring.send((key, value, of_keys), first * shift)
        (state, _), _ = jax.lax.scan(hop, (state, keys), jnp.arange(first, last + 1))
    out = state[0].astype(value.dtype)
    return out, (arrays, segments, out, state[1])


def _backward(spec, score, residuals, g):
    (query, key, value, table), segments, out, log_sum = residuals
    ring = _Ring(spec, key.shape[3])
    of_queries, of_keys = segments or (None, None)
    along = jnp.sum(g.astype(jnp.float32) * out, -1, keepdims=True)
    queries = (query, ring.slots(ring.rank), of_queries, g, log_sum, along)

    def fold(grads, keys, source, pairs):
        """Returns grads, ((query, table), (key, value)), with the gradients of `pairs` of chunks added."""
        ((of_query, of_table), theirs), keys = grads, (*keys, ring.slots(source))
        for i, j in pairs:
            here, there, table_too = _pair_gradient(_half(queries, i), _half(keys, j), table, spec, score)
            of_query = of_query.at[i].add(here)
            theirs = jax.tree.map(lambda x, new, j=j: x.at[j].add(new), theirs, there)
            of_table = jax.tree.map(jnp.add, of_table, table_too)
        return (of_query, of_table), theirs

    none = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), (query, (key, value), table))
    own, whole = fold(((none[0], none[2]), none[1]), (key, value, of_keys), ring.rank, ring.own)
    for shift, first, last in ring.rotations():
        def hop(carry, step, shift=shift):
            grads, keys = carry
            source = ring.source(shift, step)
            own, theirs = fold(grads, keys, source, ring.pairs(source))
            return ((own, ring.send(theirs, shift)), ring.send(keys, shift)), None
        keys = ring.send((key, value, of_keys), first * shift)
        ((own, theirs), _), _ = jax.lax.scan(hop, ((own, none[1]), keys), jnp.arange(first, last + 1))
        whole = jax.tree.map(jnp.add, whole, ring.send(theirs, -shift * (last + 1)))
    grads = (own[0], *whole, own[1])
    return jax.tree.map(lambda x, like: x.astype(like.dtype), grads, (query, key, value, table)), None


_ring.defvjp(_forward, _backward)


class _Ring:
    """Who holds which tokens, and what goes where, for chunks of `length` tokens."""

    def __init__(self, spec, length):
        self.spec, self.length, self.size = spec, length, spec.zigzag.shards
        self.rank = jax.lax.axis_index(AXIS)

    def slots(self, source):
        """Returns the slots [2 T] of the tokens that belong to device `source`."""
        return self.spec.zigzag.slots(source, 2 * self.length).reshape(2, -1)

    def source(self, shift, step):
        """Returns whose keys are here after `step` hops of `shift` devices."""
        return (self.rank - shift * step) % self.size

    def send(self, tree, shift):
        """Returns the arrays received from the device `shift` ranks before, as each sends its own `shift` ranks on."""
        if shift % self.size == 0:
            return tree
        way = [(i, (i + shift) % self.size) for i in range(self.size)]
        return jax.tree.map(lambda x: jax.lax.ppermute(x, AXIS, way), tree)

    @property
    def own(self):
        """The pairs (chunk of queries, chunk of keys) that only keys which never left add to those of every step."""
        return [(0, 0)] if self.spec.causal else []

    def pairs(self, source):
        """Returns the pairs of chunks that a mask may leave something of at every step, step 0 being the own keys."""
        if not self.spec.causal:
            return [(0, 0), (0, 1), (1, 0), (1, 1)]
        same = jnp.where(source < self.rank, 0, 1)
        return [(1, 0), (same, same)]

    def rotations(self):
        """Returns ring permutations (shift, first step, last step): all the way round, or a window's reach each way.

        A chunk's neighbours are on the devices beside its own, before and after.
        """
        reach = (self.spec.window - 2) // self.length + 1 if self.spec.window else self.size
        if 2 * reach >= self.size - 1:
            return [(1, 0, self.size - 1)]
        return [(1, 0, reach), (-1, 1, reach)] if reach else [(1, 0, 0)]


def _half(tree, i):
    return jax.tree.map(lambda x: x[i], tree)


def _pair(queries, keys, table, spec, score):
    """Returns (attention [B K G T H], log of the sum of exponentials [B K G T 1]) of a chunk of queries to one of keys.

    queries: (queries, slots, segments); keys: (keys, values, segments, slots).
    """
    key, value, of_keys, among = keys

    def block(query, at, of_queries):
        logits = _scores(query, key, table, (at, among, of_queries, of_keys), (spec, score))
        top = jnp.max(logits, -1, keepdims=True)
        chance = jnp.exp(logits - top)
        total = jnp.sum(chance, -1, keepdims=True)
        mixed = jnp.einsum('BKGTS,BKSH->BKGTH', chance.astype(value.dtype), value, preferred_element_type=jnp.float32)
        return mixed / total, top + jnp.log(total)
    return _join(jax.lax.map(lambda part: block(*part), _cut(queries)))


def _pair_gradient(queries, keys, table, spec, score):
    """Returns the gradients by queries, by (keys, values) and by the table of one pair of chunks.

    queries: those of `_pair`, then the gradient by attention, the log of the sum, and the product of the gradient with
    attention.
    """
    key, value, of_keys, among = keys

    def block(total, part):
        query, at, of_queries, g, log_sum, along = part
        logits, pull = jax.vjp(lambda q, k, t: _scores(q, k, t, (at, among, of_queries, of_keys), (spec, score)),
                              query, key, table)
        chance = jnp.exp(logits - log_sum)
        of_value = jnp.einsum('BKGTS,BKGTH->BKSH', chance.astype(g.dtype), g, preferred_element_type=jnp.float32)
        slope = jnp.einsum('BKGTH,BKSH->BKGTS', g, value, preferred_element_type=jnp.float32)
        of_query, of_key, of_table = pull(chance * (slope - along))
        return jax.tree.map(jnp.add, total, (of_key.astype(jnp.float32), of_value, of_table)), of_query

    zero = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), (key, value, table))
    (of_key, of_value, of_table), of_query = jax.lax.scan(block, zero, _cut(queries))
    return _join(of_query).astype(jnp.float32), (of_key, of_value), of_table


def _scores(query, key, table, marks, how):
    (at, among, of_queries, of_keys), (spec, score) = marks, how
    spec = replace(spec, segments=None if of_keys is None else (of_queries, of_keys),
                   bias=None if table is None else (table, score))
    return masking.scores(query, key, spec, at, among)


def _cut(queries):
    """Returns a chunk of queries and what goes with them as blocks on a leading axis."""
    length = queries[0].shape[3]
    parts = length // BLOCK if length % BLOCK == 0 else 1

    def cut(x):
        axis = {1: 0, 2: 1, 5: 3}[x.ndim]
        return jnp.moveaxis(x.reshape(*x.shape[:axis], parts, -1, *x.shape[axis + 1:]), axis, 0)
    return jax.tree.map(cut, queries)


def _join(tree):
    """Returns blocks [X B K G T ...] as chunks [B K G XT ...]."""
    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 3).reshape(*x.shape[1:4], -1, x.shape[-1]), tree)


def _merge(state, part):
    """Returns attention and log of the sum over the keys of both."""
    (mixed, log_sum), (more, log_more) = state, part
    both = jnp.logaddexp(log_sum, log_more)
    return mixed * jnp.exp(log_sum - both) + more * jnp.exp(log_more - both), both
