"""The parts of an optimizer that optax lacks: factored moments, stacked orthogonal momentum, averages of parameters."""
import math
import operator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lm import config, trees
from lm.optim import matrices


class Plan(NamedTuple):
    """An optimizer's settings of each parameter, as trees of the parameters' names.

    `trained` has a bool for every parameter. The others have only the parameters that train: their MatrixViews, their
    weight decay, and the multipliers of their learning rate.
    """

    trained: Any
    views: Any
    decays: Any
    multipliers: Any


def plan(optimizer, params, axes=None, base_shapes=None):
    """Returns the Plan of an optim.Optimizer for `params`; `axes` and `base_shapes` as in `matrices.of`.

    Weight decay is divided by muP's multiplier of the rate, so that rate times decay is the same at every width (Wang
    and Aitchison 2024, arXiv:2405.13698).
    """
    views = matrices.of(params, axes, base_shapes)
    trained = jax.tree.map(lambda _: True, params)
    if optimizer.frozen:
        trained = jax.tree.map(lambda frozen: not frozen, trees.mask(params, optimizer.frozen))
    if not any(jax.tree.leaves(trained)):
        raise config.Error(f'frozen={optimizer.frozen!r} freezes all parameters; try a regex that leaves some.')
    decaying = jax.tree.map(lambda view: view.matrix, views)
    if optimizer.decay:
        decaying = trees.mask(params, optimizer.decay)
    transfers = jax.tree.map(optimizer.transfer, views)
    decays = jax.tree.map(lambda on, transfer: optimizer.weight_decay / transfer if on else 0.0, decaying, transfers)
    multipliers = jax.tree.map(operator.mul, jax.tree.map(optimizer.multiplier, views), transfers)
    for regex, factor in optimizer.rates:
        factors = jax.tree.map(lambda on, factor=factor: factor if on else 1.0, trees.mask(params, regex))
        multipliers = jax.tree.map(operator.mul, multipliers, factors)
    return Plan(trained, *(trees.select(tree, trained) for tree in (views, decays, multipliers)))


class Factors(NamedTuple):
    """Second moments of matrices as row and column means, each kept with the rank of its leaf: [L D 1] and [L 1 F]."""

    step: jax.Array
    rows: Any
    columns: Any


def scale_by_factored_moments(views, decay, eps, floor):
    """Returns Adafactor's transformation (Shazeer and Stern 2018, arXiv:1804.04235), each matrix of a stack on its own.

    Second moments decay by 1 - t**-decay, the update's root mean square is clipped at 1 and then multiplied by that of
    the parameters or `floor`, whichever is more. `eps` is added to the squared gradients. Vectors keep full moments.
    """
    def mean(axes):
        return lambda leaf: jnp.mean(leaf, axes, keepdims=True)

    def init(params):
        return Factors(jnp.zeros([], jnp.int32),
                       jax.tree.map(lambda p, view: jnp.zeros_like(mean(view.outer)(p)), params, views),
                       jax.tree.map(lambda p, view: jnp.zeros_like(mean(view.inner)(p)), params, views))

    def update(grads, state, params):
        step = state.step + 1
        beta = 1 - step.astype(jnp.float32) ** -decay

        def moment(axes):
            return lambda old, g: beta * old + (1 - beta) * mean(axes)(jnp.square(g) + eps)

        def scale(g, row, column, p, view):
            whole = mean(view.inner + view.outer)
            u = g * jax.lax.rsqrt(row / mean(view.inner)(row)) * jax.lax.rsqrt(column)
            u = u / jnp.maximum(1, jnp.sqrt(whole(jnp.square(u))))
            return u * jnp.maximum(floor, jnp.sqrt(whole(jnp.square(p))))

        rows = jax.tree.map(lambda old, g, view: moment(view.outer)(old, g), state.rows, grads, views)
        columns = jax.tree.map(lambda old, g, view: moment(view.inner)(old, g), state.columns, grads, views)
        return jax.tree.map(scale, grads, rows, columns, params, views), Factors(step, rows, columns)
    return optax.GradientTransformation(init, update)


class Divided(NamedTuple):
    """The states of two transformations, each of which has some of a tree's leaves."""

    chosen: Any
    others: Any


def partition(mask, chosen, others):
    """Returns the transformation that applies `chosen` to the leaves where `mask` is true and `others` to the rest.

    Unlike optax.partition it leaves no placeholders in its states, whose trees hold the leaves' names alone.
    """
    opposite = jax.tree.map(lambda value: not value, mask)

    def init(params):
        return Divided(chosen.init(trees.select(params, mask)), others.init(trees.select(params, opposite)))

    def update(grads, state, params):
        first, first_state = chosen.update(trees.select(grads, mask), state.chosen, trees.select(params, mask))
        second, second_state = others.update(trees.select(grads, opposite), state.others,
                                             trees.select(params, opposite))
        return trees.merge(trees.merge(grads, first), second), Divided(first_state, second_state)
    return optax.GradientTransformation(init, update)


def orthogonalize(views, momentum, iterations, rms):
    """Returns Muon's transformation: Nesterov momentum, each matrix of a stack orthogonalised, then scaled.

    The scale is `spectral_norm`.
    """
    def scale(direction, view):
        rows, columns = (math.prod(direction.shape[axis] for axis in axes) for axes in (view.inner, view.outer))
        return direction * spectral_norm(rows, columns, rms)

    dimensions = jax.tree.map(lambda view: optax.contrib.MuonDimensionNumbers(view.inner, view.outer), views)
    return optax.chain(
        optax.contrib.scale_by_muon(beta=momentum, ns_steps=iterations, weight_dimension_numbers=dimensions),
        optax.stateless(lambda directions, _: jax.tree.map(scale, directions, views)))


def spectral_norm(rows, columns, rms):
    """Returns the spectral norm of Muon's direction for a matrix.

    With `rms` above 0 it gives the direction that root mean square, as a matrix of spectral norm 1 with orthogonal rows
    or columns has 1 / sqrt(max(rows, columns)); with 0 it is sqrt(max(1, columns / rows)).
    """
    return rms * max(rows, columns) ** 0.5 if rms else max(1, columns / rows) ** 0.5


def clip(grads, limit):
    """Returns the gradients scaled so that their global norm is at most `limit`; unchanged where limit is 0."""
    if trees.statically_zero(limit):
        return grads
    scale = jnp.minimum(1, limit / jnp.maximum(trees.norm(grads), jnp.finfo(jnp.float32).tiny))
    scale = jnp.where(jnp.asarray(limit) > 0, scale, 1)
    return jax.tree.map(lambda g: g * scale, grads)


class Average(NamedTuple):
    """An exponential moving average of parameters and the number of steps in it."""

    step: jax.Array
    params: Any


def track_average(decay):
    """Returns the transformation that leaves updates as they are and keeps the average of the parameters they lead to.

    The decay at step t (from 0) is min(decay, (1 + t) / (10 + t)), so that the initial values are soon forgotten.
    """
    def init(params):
        return Average(jnp.zeros([], jnp.int32), trees.copy(params))

    def update(updates, state, params):
        beta = jnp.minimum(decay, (1 + state.step) / (10 + state.step))
        average = jax.tree.map(lambda a, p: p + beta * (a - p), state.params, optax.apply_updates(params, updates))
        return updates, Average(state.step + 1, average)
    return optax.GradientTransformation(init, update)


class Interpolation(NamedTuple):
    """The state of schedule-free training: the sequence z (`base`), the sum of weights in x, and the highest rate yet.
    """

    step: jax.Array
    weight: jax.Array
    peak: jax.Array
    base: Any


def interpolate(rate, b1):
    """Returns the schedule-free transformation (Defazio et al. 2024, arXiv:2405.15682) of updates of the sequence z.

    The parameters are y = b1 x + (1 - b1) z, where gradients are taken; x is the average of z, weighted by the square
    of the highest rate so far. `average_of` recovers x.
    """
    def init(params):
        return Interpolation(jnp.zeros([], jnp.int32), jnp.zeros([], jnp.float32), jnp.zeros([], jnp.float32),
                             trees.copy(params))

    def update(updates, state, params):
        peak = jnp.maximum(state.peak, rate(state.step))
        weight = state.weight + jnp.square(peak)
        share = jnp.where(weight > 0, jnp.square(peak) / weight, 0)

        def move(y, z, u):
            x = (y - (1 - b1) * z) / b1
            x = x + share * (z + u - x)
            return b1 * x + (1 - b1) * (z + u) - y

        moves = jax.tree.map(move, params, state.base, updates)
        return moves, Interpolation(state.step + 1, weight, peak, optax.apply_updates(state.base, updates))
    return optax.GradientTransformation(init, update)


def average_of(params, state, b1):
    """Returns schedule-free training's x for parameters y and the state of `interpolate`."""
    return jax.tree.map(lambda y, z: (y - (1 - b1) * z) / b1, params, state.base)


def to_float32(state):
    """Returns an optimizer's state with its bfloat16 arrays in float32."""
    return jax.tree.map(lambda x: x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x, state)


def to_storage(state, dtype, step):
    """Returns an optimizer's state with its float32 arrays in `dtype`, except scalars, as it is kept between steps.

    Rounding to bfloat16 is stochastic and unbiased: the chance to round up is such that the mean is right. The random
    bits depend on `step` alone.
    """
    if dtype == 'float32':
        return state
    leaves, shape = jax.tree.flatten(state)
    keys = jax.random.split(jax.random.fold_in(jax.random.key(0), step), max(1, len(leaves)))
    stored = [_round_to_bfloat16(x, key) if x.dtype == jnp.float32 and x.ndim else x
              for x, key in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(shape, stored)


def _round_to_bfloat16(x, key):
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    # bfloat16 is the upper half of float32: random bits added to the lower half carry into it with the right chance
    rounded = (bits + jax.random.bits(key, x.shape, jnp.uint16)) & jnp.uint32(0xFFFF0000)
    rounded = jax.lax.bitcast_convert_type(rounded, jnp.float32)
    return jnp.where(jnp.isfinite(x), rounded, x).astype(jnp.bfloat16)
