"""Meshes from a dict, logical axis names to partition specs, host rows to global arrays."""
import bisect
import math
from functools import lru_cache

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from lm import config, hardware

# Logical axis of a parameter or activation -> the mesh axes it is split over, those the mesh lacks being skipped.
RULES = {
    'batch': ('data', 'fsdp', 'expert'),
    'rows': ('data', 'fsdp', 'expert', 'stage'),
    'length': ('context',),
    'embed': ('fsdp',),
    'heads': ('tensor',),
    'kv_heads': ('tensor',),
    'ff': ('tensor',),
    'vocab': ('tensor',),
    'experts': ('expert',),
    'layers': ('stage',),
}
# The same for the state of an optimizer under ZeRO (Rajbhandari et al. 2019, arXiv:1910.02054): split over data too.
ZERO = {**RULES, 'embed': ('fsdp', 'data')}
# Those that say least to each other first: the first is laid over the slow network between slices and nodes.
AXES = ('data', 'stage', 'fsdp', 'expert', 'context', 'tensor')


def make_mesh(sizes, devices=None):
    """Returns a Mesh with the axes of `sizes`, e.g. {'data': -1, 'fsdp': 2}; one size may be -1: what is left over.

    The name of a cluster, such as 'v5e-256' or '16xh100', stands for data over its slices or nodes and fsdp within.
    Axes come in the order of AXES. Over several slices of TPUs, data takes the network between them. Raises
    config.Error when an axis is unknown or the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    full = fill(sizes, len(devices))
    axes, shape = tuple(full), tuple(full.values())
    slices = len({getattr(device, 'slice_index', 0) for device in devices})
    kinds = (AxisType.Auto,) * len(axes)
    if slices == 1:
        try:
            return jax.make_mesh(shape, axes, devices=devices, axis_types=kinds)
        except NotImplementedError:  # a side of the torus holds more than one axis
            laid = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
            return jax.sharding.Mesh(laid, axes, axis_types=kinds)
    if full.get('data', 1) % slices:
        raise config.Error(f'mesh={sizes} does not lay the axis data over {slices} slices; try data={slices}.')
    outer = tuple(slices if axis == 'data' else 1 for axis in axes)
    inner = tuple(size // many for size, many in zip(shape, outer, strict=True))
    laid = mesh_utils.create_hybrid_device_mesh(inner, outer, devices)
    return jax.sharding.Mesh(laid, axes, axis_types=kinds)


def fill(sizes, count):
    """Returns {axis: size}, in the order of AXES and without -1, of a mesh over `count` devices; see make_mesh."""
    if isinstance(sizes, str):
        cluster = hardware.cluster(sizes)
        sizes = {'data': cluster.count, 'fsdp': cluster.devices // cluster.count}
    unknown = [name for name in sizes if name not in AXES]
    if unknown:
        raise config.Error(f'mesh has no axis {unknown[0]!r}; the axes are {", ".join(AXES)}.')
    bad = [f'{name}={size}' for name, size in sizes.items() if size < 1 and size != -1]
    if bad or list(sizes.values()).count(-1) > 1:
        raise config.Error(f'mesh={sizes} has {bad[0] if bad else "-1 twice"}; try sizes of 1 or more and one -1.')
    fixed = math.prod(size for size in sizes.values() if size != -1)
    full = {name: count // fixed if size == -1 else size for name, size in sizes.items()}
    if math.prod(full.values()) != count:
        raise config.Error(f"mesh={sizes} does not fill {count} devices; try mesh={{'data': -1}}.")
    return {axis: full[axis] for axis in AXES if axis in full}


def spec(names, shape, mesh, rules=RULES):
    """Returns the PartitionSpec of an array with logical axis `names`: each split over as many of its mesh axes, in
    order, as divide it. Axes that a shard_map around it splits by are not named again.
    """
    used, entries = set(mesh.manual_axes), []
    for name, size in zip(names, shape, strict=True):
        axes = [a for a in rules.get(name, ()) if a in mesh.shape and a not in used]
        while axes and size % math.prod(mesh.shape[a] for a in axes):
            axes.pop()
        used.update(axes)
        entries.append(tuple(axes) or None)
    return P(*entries)


def check_rows(batch, accumulate, mesh):
    """Raises config.Error where micro-batches do not divide over the mesh axes that batches are split over."""
    parts, rows = math.prod(mesh.shape[axis] for axis in RULES['batch'] if axis in mesh.shape), batch // accumulate
    if rows % parts:
        fewer = [n for n in range(1, accumulate) if batch % (n * parts) == 0]
        near = max(1, round(rows / parts)) * parts * accumulate
        raise config.Error(f'{rows} rows at a time do not divide over {parts} devices '
                           f'({" x ".join(a for a in RULES["batch"] if a in mesh.shape)}); '
                           f'try {f"accumulate={fewer[-1]}" if fewer else f"data.batch={near}"}.')


def check(shapes, axes, mesh):
    """Raises config.Error where a logical axis of the parameters does not divide over its mesh axis.

    Fewer key and value heads than the axis tensor has devices are no mistake: each device keeps them all.
    """
    for names, x in zip(jax.tree.leaves(axes, is_leaf=lambda node: isinstance(node, tuple)), jax.tree.leaves(shapes),
                        strict=True):
        for name, size in zip(names, x.shape, strict=True):
            for axis in RULES.get(name, ()) if name != 'kv_heads' else ():
                parts = mesh.shape.get(axis, 1)
                if size % parts:
                    near = min((n for n in range(1, size + 1) if size % n == 0), key=lambda n: abs(n - parts))
                    raise config.Error(f'{size} {name} do not divide over mesh.{axis}={parts}; '
                                       f'try mesh.{axis}={near}.')


def mirror(tree, axes, mesh, rules=RULES):
    """Returns NamedShardings for a tree that holds parameters and what mirrors them, such as an optimizer's state.

    A leaf is split like the parameter whose dict keys its path has, if their numbers of axes agree; else it is whole.
    """
    names = names_by_path(axes)

    def place(path, x):
        return NamedSharding(mesh, spec(names(path, x), x.shape, mesh, rules))
    return jax.tree_util.tree_map_with_path(place, tree)


def names_by_path(axes):
    """Returns a function (path, array) -> the logical axis names of the parameter with the same dict keys.

    Names are None where no parameter has these keys and as many axes.
    """
    def keys(path):
        return tuple(entry.key for entry in path if isinstance(entry, jax.tree_util.DictKey))
    known = {keys(path): names for path, names in jax.tree_util.tree_leaves_with_path(
        axes, is_leaf=lambda node: isinstance(node, tuple))}

    def names_of(path, x):
        names = known.get(keys(path), ())
        return names if len(names) == len(x.shape) else (None,) * len(x.shape)
    return names_of


def constrain(x, *names):
    """Returns x, its sharding pinned by logical axis names under the mesh in context; x itself where there is none."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    return jax.lax.with_sharding_constraint(x, spec(names, x.shape, mesh))


def platform():
    """Returns 'cpu', 'gpu' or 'tpu': what the program is being compiled for, by the mesh in context if there is one."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device.platform if device else jax.default_backend()


@lru_cache
def rows(size, mesh):
    """Returns the numbers [rows], ascending, of the rows of a batch of `size` that this host's devices hold.

    They need not be neighbours, and another host may hold the same ones: where a mesh splits more than the batch.
    """
    placed = NamedSharding(mesh, spec(('batch',), (size,), mesh))
    parts = placed.addressable_devices_indices_map((size,)).values()
    return tuple(sorted({number for (part,) in parts for number in range(size)[part]}))


def put(batch, mesh, size=None):
    """Returns global arrays split by rows over the mesh, from {name: [rows ...]}: this host's `rows(size, mesh)`.

    Without a size, the batch given is the whole of it, on every host.
    """
    def place(x):
        x = np.asarray(x)
        shape = (size or x.shape[0], *x.shape[1:])
        held = rows(size, mesh) if size else range(shape[0])

        def part(index):
            first = bisect.bisect_left(held, index[0].start or 0)
            return x[(slice(first, first + len(range(shape[0])[index[0]])), *index[1:])]
        placed = NamedSharding(mesh, spec(('batch',) + (None,) * (x.ndim - 1), shape, mesh))
        return jax.make_array_from_callback(shape, placed, part)
    return jax.tree.map(place, batch)
