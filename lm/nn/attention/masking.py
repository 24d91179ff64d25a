"""The AttentionSpec: mask and score shaping of one attention; sequence sharding; attention over a mesh."""
import math
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from lm import config
from lm.parallel import sharding

MASKED = -1e30
Kernel = Literal['auto', 'blocked', 'splash', 'cudnn', 'ring', 'reference']


@jax.tree_util.register_static
@dataclass(frozen=True)
class Zigzag:
    """The order of tokens in which every one of `shards` devices has the same work under a causal mask.

    A row is cut into 2 * shards chunks, and device r holds chunks r and 2 * shards - 1 - r.
    """

    shards: int

    def chunks(self):
        """Returns the chunk that stands at each place, e.g. [0 3 1 2] for two shards."""
        return [chunk for r in range(self.shards) for chunk in (r, 2 * self.shards - 1 - r)]

    def order(self, length):
        """Returns the token that stands at each place of a row of this length, as numpy [T]."""
        return np.arange(length).reshape(2 * self.shards, -1)[self.chunks()].reshape(-1)

    def slots(self, rank, length):
        """Returns the tokens [T] that device `rank` holds, of a row of `length` on each device."""
        half = jnp.arange(length // 2)
        return jnp.concatenate([rank * (length // 2) + half, (2 * self.shards - 1 - rank) * (length // 2) + half])

    def scatter(self, tree):
        """Returns the arrays [B T ...] of a tree in this order."""
        return jax.tree.map(lambda x: x[:, self.order(x.shape[1])], tree)

    def gather(self, tree):
        """Returns the arrays [B T ...] of a tree back in the order of the text."""
        return jax.tree.map(lambda x: x[:, np.argsort(self.order(x.shape[1]))], tree)


def shard_sequence(batch):
    """Reorders the sequence axis of a batch {name: [B T] or [B]} for balanced context parallelism.

    Returns (batch, Zigzag), positions added since the order hides them; (batch, None) where no mesh axis shards it.
    Raises config.Error when a row does not cut into two chunks for each device.
    """
    mesh, length = jax.sharding.get_abstract_mesh(), batch['inputs'].shape[1]
    shards = mesh.shape.get('context', 1)
    if shards == 1:
        return batch, None
    if length % (2 * shards):
        near = max(1, round(length / (2 * shards))) * 2 * shards
        raise config.Error(f'a row of {length} tokens does not cut into 2 chunks for each of mesh.context={shards} '
                           f'devices; try data.context={near}.')
    batch, order = {'positions': jnp.broadcast_to(jnp.arange(length), batch['inputs'].shape), **batch}, Zigzag(shards)
    return {name: order.scatter(x) if x.ndim > 1 else x for name, x in batch.items()}, order


@dataclass(frozen=True)
class AttentionSpec:
    """Mask (causal, window, segments), score shaping (scale, softcap, bias) and kernel choice of one attention.

    window: a query sees itself and window - 1 keys before it; 0 for all. softcap: scores become c * tanh(scores / c),
    before a bias is added. segments: (of queries [B T], of keys [B S]): only equal ones see each other. index: the
    slots of the queries among the keys [B T], where they are not the same 0..T-1. bias: (table [... N], score), which
    adds score(table, query slots [T], key slots [S]) -> [N T S]. sink [N]: the score of a key that all queries see,
    without a value. kernel: one picked by hand. zigzag: the order that queries and keys stand in, where the mesh splits
    their length.
    """

    causal: bool = True
    window: int = 0
    softcap: float = 0.0
    scale: float | None = None
    segments: tuple | None = None
    index: jax.Array | None = None
    bias: tuple | None = None
    sink: jax.Array | None = None
    kernel: Kernel = 'auto'
    zigzag: Zigzag | None = None

    def scaled(self, query):
        """Returns queries [... H] times the scale, 1 / sqrt(H) unless the AttentionSpec has its own."""
        return query * (query.shape[-1] ** -0.5 if self.scale is None else self.scale)


def scores(query, key, spec, at, among):
    """Returns masked float32 scores [B K G T S] of scaled queries [B K G T H] and keys [B K S H].

    The queries are at slots `at` [T] or [B T], the keys at slots `among` [S].
    """
    at = jnp.atleast_2d(at)
    logits = jnp.einsum('BKGTH,BKSH->BKGTS', query, key, preferred_element_type=jnp.float32)
    if spec.softcap:
        logits = spec.softcap * jnp.tanh(logits / spec.softcap)
    if spec.bias is not None:
        table, score = spec.bias
        logits = logits + jax.vmap(lambda slots: score(table, slots, among))(at).reshape(-1, *logits.shape[1:])
    return jnp.where(visible(spec, at, among)[:, None, None], logits, MASKED)


def visible(spec, at, among):
    """Returns which keys at slots [S] each query at slots [1 or B, T] sees, [1 or B, T, S]."""
    ahead = at[:, :, None] - among
    seen = ahead >= 0 if spec.causal else jnp.ones_like(ahead, bool)
    if spec.window:
        seen &= jnp.abs(ahead) < spec.window
    if spec.segments is not None:
        queries, keys = spec.segments
        seen &= queries[:, :, None] == keys[:, None, :]
    return seen


def over_mesh(call, query, key, value, spec):
    """Returns call(query, key, value, spec) with each device of the mesh in context at its own rows and heads.

    Its own part of the length too, where the spec has a zigzag. Key heads fewer than the devices that split the query
    heads are repeated. The call sees arrays of one device and may use collectives over the axis 'context'.
    """
    mesh = jax.sharding.get_abstract_mesh()
    free = set(mesh.auto_axes)
    if not free or mesh.size == 1:
        return call(query, key, value, spec)
    partition = partial(sharding.spec, mesh=mesh)
    length = 'length' if spec.zigzag else None
    of_query = partition(('batch', length, 'heads', None), query.shape)
    parts = math.prod(mesh.shape[axis] for axis in _axes(of_query[2]))
    key, value = (jnp.repeat(x, math.lcm(x.shape[2], parts) // x.shape[2], axis=2) for x in (key, value))
    of_key = partition(('batch', length, 'heads', None), key.shape)
    table, score = spec.bias or (None, None)
    arrays = (query, key, value, spec.segments, table)
    specs = (of_query, of_key, of_key, jax.tree.map(lambda x: partition(('batch', length), x.shape), spec.segments),
             None if table is None else partition((None,) * (table.ndim - 1) + ('heads',), table.shape))

    def local(query, key, value, segments, table):
        bias = None if table is None else (table, score)
        return call(query, key, value, replace(spec, segments=segments, bias=bias))
    return jax.shard_map(local, in_specs=specs, out_specs=of_query, axis_names=free, check_vma=False)(*arrays)


def _axes(entry):
    """Returns the mesh axes of an entry of a PartitionSpec, which holds a single one bare."""
    return (entry,) if isinstance(entry, str) else entry or ()
