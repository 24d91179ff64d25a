"""Dispatch of tokens to experts: sorted by expert on one device, all-to-all over the mesh axis 'expert'."""
import math
from functools import partial

import jax
import jax.numpy as jnp

from lm.parallel import sharding

BLOCK = 128  # least rows of one expert that a GPU multiplies at once


def over_mesh(apply, x, ids, gates, weights):
    """Returns apply(x [n D], (ids, gates) [n top_k], weights) of each device's tokens and experts, as [B T D].

    ids, gates: [B T top_k], the experts of each token and their weights. weights: Weights [E D F] and, last, [E F D].
    """
    def mix(x, ids, gates, *weights):
        rows = [array.reshape(-1, array.shape[-1]) for array in (x, ids, gates)]
        return apply(rows[0], rows[1:], weights).reshape(*x.shape[:-1], -1)
    mesh, values = jax.sharding.get_abstract_mesh(), [w.value for w in weights]
    if not mesh.auto_axes or mesh.size == 1:
        return mix(x, ids, gates, *values)
    # Gathered over fsdp on entry: inside, a device has all of its experts' rows of embed.
    tables = [sharding.spec([None if name == 'embed' else name for name in w.names], w.value.shape, mesh)
              for w in weights]
    partial_sums = 'tensor' in (tables[-1][1] or ())  # hidden units are split: a device mixes a part of each output
    tokens = [sharding.spec(('batch', 'stream' if partial_sums else 'length', None), array.shape, mesh)
              for array in (x, ids, gates)]
    split = 'tensor' in (tokens[0][1] or ())

    def local(x, ids, gates, *weights):
        arrays = x, ids, gates
        if split:
            arrays = (jax.lax.all_gather(array, 'tensor', axis=1, tiled=True) for array in arrays)
        y = mix(*arrays, *weights)
        if split:
            return jax.lax.psum_scatter(y, 'tensor', scatter_dimension=1, tiled=True)
        return jax.lax.psum(y, 'tensor') if partial_sums else y
    return jax.shard_map(local, in_specs=(*tokens, *tables), out_specs=tokens[0], axis_names=set(mesh.auto_axes),
                         check_vma=False)(x, ids, gates, *values)


def apply(experts, x, routes, weights):
    """Returns the mix [n D] of experts' outputs for tokens x [n D], each sent to the devices that hold its experts.

    routes: (ids, gates) [n top_k]. weights: those of this device's experts, [E/owners D F/tensor] and, last, down.
    """
    ids, gates = routes
    order = jnp.argsort(ids.reshape(-1), stable=True)
    rows = x[order // ids.shape[-1]]
    counts = jnp.bincount(ids.reshape(-1), length=experts.count)
    owners = experts.count // weights[0].shape[0]
    if owners == 1:
        out = _apply(experts.activate, rows, counts, weights)
    else:
        exchange = _AllToAll(counts, owners, experts.capacity_factor, len(rows))
        out = exchange.combine(_apply_unsorted(experts.activate, exchange.dispatch(rows), exchange.received, weights))
    out = out[jnp.argsort(order)].reshape(*ids.shape, -1)
    return jnp.einsum('nkD,nk->nD', out, gates)


def _apply(activate, rows, sizes, weights):
    """Returns the experts' outputs [m D] for rows [m D] in the order of experts, `sizes` [E] of them each."""
    groups = (_Blocks if sharding.platform() == 'gpu' else _Ragged)(sizes, len(rows))
    grouped = groups.group(rows)
    *ins, down = (partial(groups.multiply, w=w) for w in weights)
    return groups.ungroup(down(activate(*(project(grouped) for project in ins))))


class _Ragged:
    """Rows in the order of experts as they are, for a product that takes groups of any size."""

    def __init__(self, sizes, rows):
        self.sizes = sizes

    def multiply(self, rows, w):
        return jax.lax.ragged_dot(rows, w, self.sizes)

    def group(self, rows):
        return rows

    def ungroup(self, rows):
        return rows


class _Blocks:
    """Rows in the order of experts, padded so that each block of them belongs to one expert.

    For NVIDIA GPUs, where XLA lowers a ragged product to one by every expert's matrix: E times the FLOPs, rows [m ED]
    (two layers of Qwen3-30B-A3B on 8 x H100, compiled: 42,156 TFLOP so, 2,257 in blocks).
    """

    def __init__(self, sizes, rows):
        count = len(sizes)
        self.size = max(BLOCK, 2 ** round(math.log2(max(1, rows / count))))
        self.many = -(-rows // self.size) + count
        blocks = -(-sizes // self.size)
        self.owners = jnp.repeat(jnp.arange(count), blocks, total_repeat_length=self.many)
        expert = jnp.repeat(jnp.arange(count), sizes, total_repeat_length=rows)
        self.places = jnp.arange(rows) + (self.size * _starts(blocks) - _starts(sizes))[expert]

    def multiply(self, rows, w):
        return _by_blocks(rows, self.owners, w)

    def group(self, rows):
        out = jnp.zeros((self.many * self.size, rows.shape[-1]), rows.dtype)
        return out.at[self.places].set(rows, unique_indices=True).reshape(self.many, self.size, -1)

    def ungroup(self, rows):
        return rows.reshape(-1, rows.shape[-1])[self.places]


@jax.custom_vjp
def _by_blocks(rows, owners, w):
    """Returns rows [X m D] times the matrices w [E D F] of their blocks' owners [X], block by block."""
    return jax.lax.map(lambda block: block[0] @ w[block[1]], (rows, owners))


def _by_blocks_backward(residuals, g):
    rows, owners, w = residuals

    def add(total, block):
        x, owner, g = block
        return total.at[owner].add(jnp.dot(x.T, g, preferred_element_type=jnp.float32)), g @ w[owner].T
    total, by_rows = jax.lax.scan(add, jnp.zeros(w.shape, jnp.float32), (rows, owners, g))
    return by_rows, None, total.astype(w.dtype)


_by_blocks.defvjp(lambda *args: (_by_blocks(*args), args), _by_blocks_backward)


def _apply_unsorted(activate, rows, received, weights):
    """Returns `_apply` for rows [m D] that lie by sender first: `received` [senders E] of them for each expert."""
    senders, count = received.shape
    labels = jnp.append(jnp.tile(jnp.arange(count), senders), count)
    ends = jnp.append(received.reshape(-1), len(rows) - jnp.sum(received))
    order = jnp.argsort(jnp.repeat(labels, ends, total_repeat_length=len(rows)), stable=True)
    return _apply(activate, rows[order], jnp.sum(received, 0), weights)[jnp.argsort(order)]


class _AllToAll:
    """Token dispatch to expert shards along the mesh axis 'expert' and back, with static shapes.

    counts: how many rows [E] this device has for each expert. sent and received: how many rows for each expert go to
    each owner [owners E/owners], and come from each sender [senders E/owners].
    """

    def __init__(self, counts, owners, capacity_factor, rows):
        self.rows, self.me = rows, jax.lax.axis_index('expert')
        self.slots = int(-(-capacity_factor * rows // 1)) if capacity_factor else owners * rows
        everyone = jax.lax.all_gather(counts, 'expert').reshape(owners, owners, -1)
        queues = jnp.moveaxis(everyone, 1, 0).reshape(owners, -1)
        kept = jnp.clip(self.slots - _starts(queues), 0, queues).reshape(owners, owners, -1)
        self.sent, self.received = kept[:, self.me], kept[self.me]
        # places[s, o]: where in sender s's rows those of owner o begin; slots[s, o]: where they go in owner o's
        self.places = _starts(jnp.sum(everyone, -1))
        self.targets = _starts(jnp.sum(kept, -1)).T

    def dispatch(self, rows):
        """Returns the rows [slots D] that this device received, by sender and then by expert."""
        out = jnp.zeros((self.slots, rows.shape[-1]), rows.dtype)
        sizes = jnp.sum(self.sent, -1), jnp.sum(self.received, -1)
        return _ragged_all_to_all(rows, out, (self.places[self.me], self.targets[self.me]), sizes)

    def combine(self, rows):
        """Returns the rows [rows D] where they came from; those over the capacity are 0."""
        out = jnp.zeros((self.rows, rows.shape[-1]), rows.dtype)
        sizes = jnp.sum(self.received, -1), jnp.sum(self.sent, -1)
        return _ragged_all_to_all(rows, out, (self.targets[:, self.me], self.places[:, self.me]), sizes)


def _starts(sizes):
    """Returns where each of the blocks laid one behind the other along the last axis begins."""
    return jnp.cumsum(sizes, -1) - sizes


def _ragged_all_to_all(rows, out, places, sizes):
    """Returns `out` with blocks of the others' rows written to it, along the mesh axis 'expert'.

    places: where the blocks for each device begin in these rows, and where they go in its `out`. sizes: how many rows
    go to each device, and come from each. XLA's CPU backend lacks the operation; an all-gather stands in for it.
    """
    starts, targets = places
    if sharding.platform() != 'cpu':
        return jax.lax.ragged_all_to_all(rows, out, starts, sizes[0], targets, sizes[1], axis_name='expert')
    me = jax.lax.axis_index('expert')
    starts, targets, counts = (jax.lax.all_gather(array, 'expert')[:, me] for array in (starts, targets, sizes[0]))
    ahead = jnp.arange(len(out))[:, None] - targets
    hit = (ahead >= 0) & (ahead < counts)
    sender = jnp.argmax(hit, -1)
    place = starts[sender] + jnp.take_along_axis(ahead, sender[:, None], -1)[:, 0]
    received = jax.lax.all_gather(rows, 'expert')[sender, jnp.clip(place, 0, len(rows) - 1)]
    return jnp.where(jnp.any(hit, -1, keepdims=True), received, out)
