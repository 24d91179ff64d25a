"""Reductions of gradients and of activations: two-stage reduce-scatter on TPU slices, one all-reduce over `data` per
step, and sequence parallelism along `tensor`.
"""
import contextlib
import contextvars
from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from lm import hardware
from lm.parallel import sharding

# Devices up to which libtpu overlaps the all-gather of a weight with its product (collective matmul): no need to split.
COLLECTIVE_MATMUL = 32


def reduce_scatter(x, *names):
    """Returns x, a partial sum with these logical axis names, constrained to its sharding.

    libtpu 0.0.52 lowers a reduction over the whole slice to an all-reduce and a slice, for twice the bytes; over one
    side of the torus first and then the others, both become reduce-scatters.
    """
    finer = _split_torus(jax.sharding.get_abstract_mesh())
    if finer is not None:
        x = jax.lax.with_sharding_constraint(x, NamedSharding(finer, sharding.spec(names, x.shape, finer)))
    return sharding.constrain(x, *names)


def reduce_scatter_gradient(x, *names):
    """Returns x, a parameter with these logical axis names, whose gradient is reduced by `reduce_scatter`.

    It is gathered here once for all that multiply by it; left to itself XLA gathers it for each in another layout.
    """
    return x if _split_torus(jax.sharding.get_abstract_mesh()) is None else _gathered(x, names)


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _gathered(x, names):
    return sharding.constrain(x, *(None if name == 'embed' else name for name in names))


_gathered.defvjp(lambda x, names: (_gathered(x, names), None), lambda names, _, g: (reduce_scatter(g, *names),))


def _split_torus(mesh):
    """Returns the mesh with fsdp split into the first side of the torus and the rest; None unless fsdp is the slice."""
    device, count = mesh.abstract_device, mesh.shape.get('fsdp', 1)
    chip = hardware.find(device.device_kind) if device else None
    whole_slice = mesh.size <= count * mesh.shape.get('data', 1)
    if chip is None or not chip.torus or count <= COLLECTIVE_MATMUL or not whole_slice:
        return None
    side = max(n for n in range(1, count) if count % n == 0 and n ** chip.torus <= count)
    sizes = [(name, size) if name != 'fsdp' else (name, side) for name, size in mesh.shape.items()]
    sizes.insert([name for name, _ in sizes].index('fsdp') + 1, ('rest', count // side))
    names, sizes = zip(*sizes, strict=True)
    return AbstractMesh(sizes, names, axis_types=(AxisType.Auto,) * len(names), abstract_device=device)


def gather_stream(x, rows='batch'):
    """Returns the residual stream x [B T D], split over `tensor` along T, all-gathered for products with weights that
    are split over `tensor`; its gradient, a partial sum there, is reduce-scattered.

    With `scatter_stream`, sequence parallelism (Korthikanti et al. 2022, arXiv:2205.05198): norms, dropout and what is
    kept between products are a share of T. `rows`: the logical axis of B.
    """
    return _reshard(x, (rows, 'length', None), (rows, 'stream', None))


def scatter_stream(x):
    """Returns x [B T D], a partial sum over `tensor`, reduce-scattered along T; its gradient is all-gathered."""
    return _reshard(x, ('batch', 'stream', None), ('batch', 'length', None))


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _reshard(x, names, gradient_names):
    return sharding.constrain(x, *names)


_reshard.defvjp(lambda x, names, _: (sharding.constrain(x, *names), None),
                lambda _, gradient_names, residuals, g: (sharding.constrain(g, *gradient_names),))


def all_reduce_once(function):
    """Returns function(params, batch, key) run per shard of `data`, its result all-reduced once.

    The result is a tree of sums over the rows of the batch. Without this each micro-batch inside is all-reduced.
    """
    def total(*args):
        return jax.tree.map(lambda x: jax.lax.psum(x, 'data'), function(*args))

    def call(*args):
        if not can_defer(jax.sharding.get_abstract_mesh().shape):
            return function(*args)
        return jax.shard_map(total, in_specs=(P(), P('data'), P()), out_specs=P(), axis_names={'data'},
                             check_vma=False)(*args)
    return call


def can_defer(sizes):
    """Returns whether `data` may be a manual axis of a mesh {axis: size}.

    Beside one other axis at most: XLA (jax 0.10 to 0.12) crashes on a gather that is split over two axes under a third.
    And not where `reduce_scatter` needs a split torus, a mesh that cannot be nested.
    """
    one_more = sum(size > 1 for size in sizes.values()) <= 2
    return sizes.get('data', 1) > 1 and one_more and sizes.get('fsdp', 1) <= COLLECTIVE_MATMUL


def pmean_data(x):
    """Returns the mean of x over the shards of `data` inside `all_reduce_once`; elsewhere x itself."""
    return jax.lax.pmean(x, 'data') if _data_is_manual() else x


def gather_rows(x):
    """Returns the rows x [B ...] of all shards of `data` inside `all_reduce_once`; elsewhere x, which has them all."""
    return jax.lax.all_gather(x, 'data', tiled=True) if _data_is_manual() else x


def global_row_offset(count):
    """Returns the number of the first of a shard's `count` rows in the whole batch."""
    return jax.lax.axis_index('data') * count if _data_is_manual() else 0


_PART = contextvars.ContextVar('part', default=(0, 1))


@contextlib.contextmanager
def micro_batch(number, parts):
    """Within, `row_numbers` are those of micro-batch `number` of `parts`: rows number, number + parts, and so on."""
    token = _PART.set((number, parts))
    try:
        yield
    finally:
        _PART.reset(token)


def row_numbers(count):
    """Returns the numbers [count] in the whole batch of the rows of a shard and micro-batch: noise is drawn by them."""
    number, parts = _PART.get()
    return number + parts * (global_row_offset(count) + jnp.arange(count))


def _data_is_manual():
    return 'data' in jax.sharding.get_abstract_mesh().manual_axes


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def embed_major_gradient(x, names):
    """Returns x, a parameter with these logical axis names, whose gradient has the axis 'embed' outermost in memory.

    TPUs tile the minor axis to 128. Under fsdp a device may have 16 rows of embed, and XLA's own layout was seen to pad
    the stacked gradients of all layers to eight times their size (libtpu 0.0.52).
    """
    return x


def _embed_major_backward(names, _, g):
    from jax.experimental.layout import Layout, with_layout_constraint
    if sharding.platform() != 'tpu':
        return (g,)
    return (with_layout_constraint(g, Layout(tuple(sorted(range(g.ndim), key=lambda axis: names[axis] != 'embed')))),)


embed_major_gradient.defvjp(lambda x, names: (x, None), _embed_major_backward)
