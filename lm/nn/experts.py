"""A mixture of experts in place of a block's MLP: top-k routing that drops no token, experts over the mesh."""
import math
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm import config
from lm.nn import layers
from lm.parallel import reductions, sharding

SMALLEST = 128  # rows of one expert that a GPU multiplies at once

@dataclass(frozen=True)
class Experts:
    """`count` experts of feed-forward size `ff`; each token uses `top` of them (Shazeer et al. 2017, arXiv:1701.06538).

    shared: how many more every token uses (Dai et al. 2024, arXiv:2401.06066). score: of the router's logits, before
    the choice; normalised: the weights of a token's experts sum to one, times `scale`. balance and z_loss: coefficients
    of the load-balance loss (Fedus et al. 2021, arXiv:2101.03961) and the router's z-loss (Zoph et al. 2022,
    arXiv:2202.08906). bias_rate: after each step the bias that joins the choice, not the weights, moves by this much
    towards even loads, without a loss (Wang et al. 2024, arXiv:2408.15664). room: rows that a device has room for under
    expert parallelism, as a multiple of an even load; what exceeds it is dropped, 0 has room for all there are.
    """

    count: int
    top: int
    ff: int
    shared: int = 0
    score: Literal['softmax', 'sigmoid'] = 'softmax'
    normalised: bool = True
    scale: float = 1.0
    balance: float = 0.01
    z_loss: float = 0.0
    bias_rate: float = 0.0
    room: float = 0.0

    def __post_init__(self):
        config.positive(self, 'count', 'top', 'ff')
        if self.top > self.count:
            raise config.Error(f'top={self.top} is more than count={self.count} experts; try top={self.count}.')
        if self.room and self.room < 1:
            raise config.Error(f'room={self.room} holds less than an even load of experts; try room=1.5.')


class Mixture(nn.Module):
    """x [B T D] -> (x, {'balance', 'router_z': the losses before their coefficients, 'load': [E], summing to one})."""

    model: Any

    @nn.compact
    def __call__(self, x):
        model, experts = self.model, self.model.experts
        gates, ids, routed = self.route(x)
        axes = {'experts': experts.count, 'embed': model.width, 'ff': experts.ff}
        down_axes = {'experts': experts.count, 'ff': experts.ff, 'embed': model.width}
        declare = partial(layers.weight, self, dtype=model.dtype)
        names = ('gate', 'up') if model.activation in layers.GATED else ('up',)
        weights = [declare(name, axes, layers.normal(0.02)) for name in names]
        weights.append(declare('down', down_axes, layers.normal(0.02 / (2 * model.depth) ** 0.5)))
        run = partial(_exchanged, experts, layers.ACTIVATIONS[model.activation])
        return _spread(run, x, ids, gates.astype(x.dtype), weights), routed

    def route(self, x):
        """Returns (weights [B T top] in float32, experts [B T top], losses and load) for tokens x [B T D]."""
        experts = self.model.experts
        table = layers.weight(self, 'router', {'embed': x.shape[-1], 'routes': experts.count}, layers.normal(0.02))
        logits = layers.einsum('BTD,DE->BTE', x.astype(jnp.float32), table)
        scores = jax.nn.sigmoid(logits) if experts.score == 'sigmoid' else jax.nn.softmax(logits)
        wanted = jax.lax.stop_gradient(scores)
        if experts.bias_rate:
            wanted += jax.lax.stop_gradient(
                layers.weight(self, 'router_bias', {'routes': experts.count}, layers.fill(0.0)))
        ids = jax.lax.top_k(wanted, experts.top)[1]
        gates = jnp.take_along_axis(scores, ids, -1)
        if experts.normalised:
            gates = gates / jnp.maximum(jnp.sum(gates, -1, keepdims=True), 1e-9)
        load = reductions.averaged(jnp.mean(jax.nn.one_hot(ids, experts.count), (0, 1, 2)))
        share = jnp.mean(scores / jnp.sum(scores, -1, keepdims=True), (0, 1))
        z = jnp.mean(jnp.square(jax.nn.logsumexp(logits, -1)))
        return gates * experts.scale, ids, {'balance': experts.count * jnp.sum(load * share), 'router_z': z,
                                            'load': load}


def moved(bias, load, rate):
    """Returns the bias [L E] of the choice moved by `rate` towards even loads [L E]."""
    return bias + rate * jnp.sign(jnp.mean(load, -1, keepdims=True) - load)


def _spread(run, x, ids, gates, weights):
    """Returns run(x [n D], (ids, gates) [n top], weights) of each device's tokens and experts, as [B T D]."""
    def local(x, ids, gates, *weights):
        rows = [each.reshape(-1, each.shape[-1]) for each in (x, ids, gates)]
        return run(rows[0], rows[1:], weights).reshape(x.shape)
    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.auto_axes or mesh.size == 1:
        return local(x, ids, gates, *weights)
    tokens = [sharding.spec(('batch', 'length', None), each.shape, mesh) for each in (x, ids, gates)]
    names = [('experts', None, 'ff')] * (len(weights) - 1) + [('experts', 'ff', None)]
    tables = [sharding.spec(name, each.shape, mesh) for name, each in zip(names, weights, strict=True)]
    return jax.shard_map(local, in_specs=(*tokens, *tables), out_specs=tokens[0], axis_names=set(mesh.auto_axes),
                         check_vma=False)(x, ids, gates, *weights)


def _exchanged(experts, activate, x, routes, weights):
    """Returns the mix [n D] of experts' outputs for tokens x [n D], each sent to the devices that hold its experts."""
    ids, gates = routes
    order = jnp.argsort(ids.reshape(-1), stable=True)
    rows = x[order // experts.top]
    counts = jnp.bincount(ids.reshape(-1), length=experts.count)
    owners = experts.count // weights[0].shape[0]
    if owners == 1:
        out = _apply(activate, rows, counts, weights)
    else:
        plan = _Exchange(counts, owners, experts.room, len(rows))
        out = plan.back(_apply_unsorted(activate, plan.forth(rows), plan.received, weights))
    out = out[jnp.argsort(order)].reshape(*ids.shape, -1)
    mixed = jnp.einsum('nkD,nk->nD', out, gates)
    return jax.lax.psum(mixed, 'tensor') if weights[-1].shape[1] < experts.ff else mixed


def _apply(activate, rows, sizes, weights):
    """Returns the experts' outputs [m D] for rows [m D] in the order of experts, `sizes` [E] of them each."""
    groups = (_Blocks if sharding.platform() == 'gpu' else _Ragged)(sizes, len(rows))
    laid = groups.forth(rows)
    *ins, down = (partial(groups.multiply, w=w) for w in weights)
    hidden = [project(laid) for project in ins]
    return groups.back(down(activate(hidden[0]) * hidden[1] if hidden[1:] else activate(hidden[0])))


class _Ragged:
    """Rows in the order of experts as they are, for a product that takes groups of any size."""

    def __init__(self, sizes, rows):
        self.sizes = sizes

    def multiply(self, rows, w):
        return jax.lax.ragged_dot(rows, w, self.sizes)

    def forth(self, rows):
        return rows

    def back(self, rows):
        return rows


class _Blocks:
    """Rows in the order of experts, moved apart so that each block of them belongs to one expert, and 0 in between.

    For NVIDIA GPUs, where XLA multiplies ragged rows by every expert's matrix: E times the work, and rows [m ED].
    """

    def __init__(self, sizes, rows):
        count = len(sizes)
        self.size = max(SMALLEST, 2 ** round(math.log2(max(1, rows / count))))
        self.many = -(-rows // self.size) + count
        blocks = -(-sizes // self.size)
        self.owners = jnp.repeat(jnp.arange(count), blocks, total_repeat_length=self.many)
        expert = jnp.repeat(jnp.arange(count), sizes, total_repeat_length=rows)
        self.places = jnp.arange(rows) + (self.size * _starts(blocks) - _starts(sizes))[expert]

    def multiply(self, rows, w):
        return _by_blocks(rows, self.owners, w)

    def forth(self, rows):
        out = jnp.zeros((self.many * self.size, rows.shape[-1]), rows.dtype)
        return out.at[self.places].set(rows, unique_indices=True).reshape(self.many, self.size, -1)

    def back(self, rows):
        return rows.reshape(-1, rows.shape[-1])[self.places]


@jax.custom_vjp
def _by_blocks(rows, owners, w):
    """Returns rows [X m D] times the matrices w [E D F] of their blocks' owners [X], block by block."""
    return jax.lax.map(lambda block: block[0] @ w[block[1]], (rows, owners))


def _by_blocks_backward(given, g):
    rows, owners, w = given

    def add(total, block):
        x, owner, g = block
        return total.at[owner].add(jnp.dot(x.T, g, preferred_element_type=jnp.float32)), g @ w[owner].T
    total, by_rows = jax.lax.scan(add, jnp.zeros(w.shape, jnp.float32), (rows, owners, g))
    return by_rows, None, total.astype(w.dtype)


_by_blocks.defvjp(lambda *given: (_by_blocks(*given), given), _by_blocks_backward)


def _apply_unsorted(activate, rows, received, weights):
    """Returns `_apply` for rows [m D] that lie by sender first: `received` [senders E] of them for each expert."""
    senders, count = received.shape
    labels = jnp.append(jnp.tile(jnp.arange(count), senders), count)
    ends = jnp.append(received.reshape(-1), len(rows) - jnp.sum(received))
    order = jnp.argsort(jnp.repeat(labels, ends, total_repeat_length=len(rows)), stable=True)
    return _apply(activate, rows[order], jnp.sum(received, 0), weights)[jnp.argsort(order)]


class _Exchange:
    """Rows sorted by expert, sent to the experts' owners along the mesh axis 'expert' and back, in shapes fixed before.

    counts: how many rows [E] this device has for each expert. sent and received: how many rows for each expert go to
    each owner [owners E/owners], and come from each sender [senders E/owners].
    """

    def __init__(self, counts, owners, room, rows):
        self.rows, self.me = rows, jax.lax.axis_index('expert')
        self.slots = int(-(-room * rows // 1)) if room else owners * rows
        everyone = jax.lax.all_gather(counts, 'expert').reshape(owners, owners, -1)
        queues = jnp.moveaxis(everyone, 1, 0).reshape(owners, -1)
        kept = jnp.clip(self.slots - _starts(queues), 0, queues).reshape(owners, owners, -1)
        self.sent, self.received = kept[:, self.me], kept[self.me]
        # places[s, o]: where in sender s's rows those of owner o begin; slots[s, o]: where they go in owner o's
        self.places = _starts(jnp.sum(everyone, -1))
        self.targets = _starts(jnp.sum(kept, -1)).T

    def forth(self, rows):
        """Returns the rows [slots D] that this device received, by sender and then by expert."""
        out = jnp.zeros((self.slots, rows.shape[-1]), rows.dtype)
        sizes = jnp.sum(self.sent, -1), jnp.sum(self.received, -1)
        return _ragged_all_to_all(rows, out, (self.places[self.me], self.targets[self.me]), sizes)

    def back(self, rows):
        """Returns the rows [rows D] where they came from; those that had no room are 0."""
        out = jnp.zeros((self.rows, rows.shape[-1]), rows.dtype)
        sizes = jnp.sum(self.received, -1), jnp.sum(self.sent, -1)
        return _ragged_all_to_all(rows, out, (self.targets[:, self.me], self.places[:, self.me]), sizes)


def _starts(sizes):
    """Returns where each of the blocks laid one behind the other along the last axis begins."""
    return jnp.cumsum(sizes, -1) - sizes


def _ragged_all_to_all(rows, out, places, sizes):
    """Returns `out` with blocks of the others' rows written to it, along the mesh axis 'expert'.

    places: where the blocks for each device begin in these rows, and where they go in its `out`. sizes: how many rows
    go to each device, and come from each. XLA's CPU backend lacks the operation, and is told it by a gather.
    """
    starts, targets = places
    if sharding.platform() != 'cpu':
        return jax.lax.ragged_all_to_all(rows, out, starts, sizes[0], targets, sizes[1], axis_name='expert')
    me = jax.lax.axis_index('expert')
    starts, targets, counts = (jax.lax.all_gather(each, 'expert')[:, me] for each in (starts, targets, sizes[0]))
    ahead = jnp.arange(len(out))[:, None] - targets
    hit = (ahead >= 0) & (ahead < counts)
    sender = jnp.argmax(hit, -1)
    place = starts[sender] + jnp.take_along_axis(ahead, sender[:, None], -1)[:, 0]
    found = jax.lax.all_gather(rows, 'expert')[sender, jnp.clip(place, 0, len(rows) - 1)]
    return jnp.where(jnp.any(hit, -1, keepdims=True), found, out)
