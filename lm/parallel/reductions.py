"""Sums over the mesh: gradients scattered over a slice of TPUs, and added up over the mesh axis data once a step."""
from functools import partial

import jax
from jax.sharding import AbstractMesh, AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from lm import hardware
from lm.parallel import sharding

RING = 32  # devices up to which libtpu multiplies by a weight while its parts go round, and needs no scattering


def scatter(x, *names):
    """Returns x, a sum over the mesh, pinned as by `constrain`: over all of a slice of TPUs in two steps.

    A sum over part of a slice is scattered by libtpu 0.0.52; one over all of it is made whole on every device, for
    twice the bytes, and cut. So it goes over one side of the torus first and over the others then.
    """
    finer = _finer(jax.sharding.get_abstract_mesh())
    if finer is not None:
        x = jax.lax.with_sharding_constraint(x, NamedSharding(finer, sharding.spec(names, x.shape, finer)))
    return sharding.constrain(x, *names)


def scatter_gradient(x, *names):
    """Returns x, a parameter with these logical axis names, whose gradient is summed by `scatter`.

    It is gathered here, for all that multiply by it, where each else has it gathered in the layout it likes.
    """
    return x if _finer(jax.sharding.get_abstract_mesh()) is None else _scatter_gradient(x, names)


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _scatter_gradient(x, names):
    return sharding.constrain(x, *(None if name == 'embed' else name for name in names))


_scatter_gradient.defvjp(lambda x, names: (_scatter_gradient(x, names), None),
                         lambda names, _, g: (scatter(g, *names),))


def _finer(mesh):
    """Returns the mesh with fsdp, over all of a large slice of TPUs, cut into its first side and the rest, or None."""
    device, count = mesh.abstract_device, mesh.shape.get('fsdp', 1)
    chip = hardware.find(device.device_kind) if device else None
    if chip is None or not chip.torus or count <= RING or mesh.size > count * mesh.shape.get('data', 1):
        return None
    side = max(n for n in range(1, count) if count % n == 0 and n ** chip.torus <= count)
    sizes = [(name, size) if name != 'fsdp' else (name, side) for name, size in mesh.shape.items()]
    sizes.insert([name for name, _ in sizes].index('fsdp') + 1, ('rest', count // side))
    names, sizes = zip(*sizes, strict=True)
    return AbstractMesh(sizes, names, axis_types=(AxisType.Auto,) * len(names), abstract_device=device)


def once(function):
    """Returns function(whole, rows, key), a tree of sums over rows [B ...], as added up over the mesh axis data once.

    Until then each part of the axis has those of its own rows alone, where it is `separable`.
    """
    def total(*given):
        return jax.tree.map(lambda x: jax.lax.psum(x, 'data'), function(*given))

    def call(*given):
        if not separable(jax.sharding.get_abstract_mesh().shape):
            return function(*given)
        return jax.shard_map(total, in_specs=(P(), P('data'), P()), out_specs=P(), axis_names={'data'},
                             check_vma=False)(*given)
    return call


def separable(sizes):
    """Returns whether a mesh of these sizes has an axis data that can be set apart.

    Beside one other axis at most: XLA of jax 0.10 to 0.12 ends the process at a gather that it has to split over two
    under a third. And where `scatter` needs no finer mesh, which cannot stand in another.
    """
    one_more = sum(size > 1 for size in sizes.values()) <= 2
    return sizes.get('data', 1) > 1 and one_more and sizes.get('fsdp', 1) <= RING


def averaged(x):
    """Returns the mean of x over the parts of the mesh axis data where `once` has set them apart; else x itself."""
    return jax.lax.pmean(x, 'data') if _apart() else x


def first_row(count):
    """Returns the number of the first of `count` rows among those of all parts that `once` has set apart."""
    return jax.lax.axis_index('data') * count if _apart() else 0


def _apart():
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
