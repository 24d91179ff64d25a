"""Device meshes from {axis: size}, partition specs from logical axis names, global arrays from rows of hosts."""
import bisect
import math
import os
from functools import lru_cache

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from lm import config, hardware
from lm.config.divisors import divisors

# Logical axis of a parameter or activation -> the mesh axes that shard it; those that a mesh lacks are skipped.
RULES = {
    'batch': ('data', 'fsdp', 'expert'),
    'rows': ('data', 'fsdp', 'expert', 'stage'),
    'length': ('context',),
    'stream': ('context', 'tensor'),  # the length between products: sequence parallelism, see reductions.gather_stream
    'embed': ('fsdp',),
    'heads': ('tensor',),
    'kv_heads': ('tensor',),
    'ff': ('tensor',),
    'vocab': ('tensor',),
    'experts': ('expert',),
    'layers': ('stage',),
}
# The same for optimizer state under ZeRO (Rajbhandari et al. 2019, arXiv:1910.02054): sharded over data too.
ZERO = {**RULES, 'embed': ('fsdp', 'data')}
# Axes with the least communication first: the outermost maps to the slow network between slices or nodes (DCN).
AXES = ('data', 'stage', 'fsdp', 'expert', 'context', 'tensor')


def make_mesh(sizes, devices=None):
    """Returns a Mesh with the axes of `sizes`, e.g. {'data': -1, 'fsdp': 2}; one size may be -1: all that are left.

    The name of a cluster, such as 'v5e-256' or '16xh100', stands for data over its slices or nodes and fsdp within.
    Axes come in the order of AXES. Over several TPU slices, data is the axis between slices. Raises config.Error where
    an axis is unknown or the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    full = fill(sizes, len(devices))
    axes, shape = tuple(full), tuple(full.values())
    slices = len({getattr(device, 'slice_index', 0) for device in devices})
    kinds = (AxisType.Auto,) * len(axes)
    if slices == 1:
        try:
            return jax.make_mesh(shape, axes, devices=devices, axis_types=kinds)
        except NotImplementedError:  # more than one mesh axis on a side of the torus
            grid = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
            return jax.sharding.Mesh(grid, axes, axis_types=kinds)
    if full.get('data', 1) % slices:
        raise config.Error(f'mesh={sizes} has data={full.get("data", 1)}, no multiple of the {slices} slices; '
                           f'try data={slices}.')
    outer = tuple(slices if axis == 'data' else 1 for axis in axes)
    inner = tuple(size // across for size, across in zip(shape, outer, strict=True))
    grid = mesh_utils.create_hybrid_device_mesh(inner, outer, devices)
    return jax.sharding.Mesh(grid, axes, axis_types=kinds)


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
    """Returns the PartitionSpec of an array with logical axis `names`: each sharded over as many of its mesh axes, in
    order, as divide it. Manual axes, those of a shard_map around the array, are left out.
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
    """Raises config.Error where the rows of a micro-batch do not divide over the mesh axes that shard them."""
    shards, rows = math.prod(mesh.shape[axis] for axis in RULES['batch'] if axis in mesh.shape), batch // accumulate
    if rows % shards:
        fewer = [n for n in divisors(max(1, batch // shards)) if n < accumulate and batch % (n * shards) == 0]
        near = max(1, round(rows / shards)) * shards * accumulate
        raise config.Error(f'{rows} rows of a micro-batch do not divide over {shards} devices '
                           f'({" x ".join(a for a in RULES["batch"] if a in mesh.shape)}); '
                           f'try {f"accumulate={fewer[-1]}" if fewer else f"data.batch={near}"}.')


def check(shapes, axes, mesh):
    """Raises config.Error where a logical axis of the parameters does not divide over its mesh axis.

    Key and value heads may be fewer than the devices of the axis tensor: they are then replicated.
    """
    for names, x in zip(jax.tree.leaves(axes, is_leaf=lambda node: isinstance(node, tuple)), jax.tree.leaves(shapes),
                        strict=True):
        for name, size in zip(names, x.shape, strict=True):
            for axis in RULES.get(name, ()) if name != 'kv_heads' else ():
                shards = mesh.shape.get(axis, 1)
                if size % shards:
                    near = min(divisors(size), key=lambda n: abs(n - shards))
                    raise config.Error(f'{size} {name} do not divide over mesh.{axis}={shards}; '
                                       f'try mesh.{axis}={near}.')


def memory(mesh):
    """Returns the bytes of memory of each of this machine's devices; CPU devices share that of the machine.

    It is infinite for devices that are only described, where the compiler says what fits.
    """
    device, count = mesh.local_devices[0], len(mesh.local_devices)
    if device not in device.client.local_devices():
        return math.inf
    stats = device.memory_stats()
    return stats['bytes_limit'] if stats else os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / count


def check_memory(tree, mesh):
    """Raises config.Error where this machine's shards of a tree of ShapeDtypeStructs take more memory than there is.

    XLA would compile for minutes before it says so, or be killed.
    """
    whole = memory(mesh)
    size = sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))
    if size > whole:
        raise config.Error(f'parameters and state of the optimizer take {size / 2 ** 30:,.1f} GiB of a device that has '
                           f'{whole / 2 ** 30:,.1f}; try a smaller model.width, or what lm plan --search says.')


def mirror(tree, axes, mesh, rules=RULES):
    """Returns NamedShardings for a tree of parameters and of state in the same structure, such as an optimizer's.

    A leaf is sharded like the parameter with the same dict keys where both have as many axes; else it is replicated.
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
    """Returns x with a sharding constraint by logical axis names, under the mesh in context; x itself without one."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    return jax.lax.with_sharding_constraint(x, spec(names, x.shape, mesh))


def platform():
    """Returns 'cpu', 'gpu' or 'tpu', which JAX compiles for: that of the mesh in context, else the default backend."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device.platform if device else jax.default_backend()


@lru_cache
def rows(size, mesh):
    """Returns the indices [rows], ascending, of the rows of a batch of `size` that this host's devices hold.

    They need not be contiguous, and where other axes shard the model several hosts hold the same rows.
    """
    placement = NamedSharding(mesh, spec(('batch',), (size,), mesh))
    slices = placement.addressable_devices_indices_map((size,)).values()
    return tuple(sorted({row for (part,) in slices for row in range(size)[part]}))


def put(batch, mesh, size=None):
    """Returns global arrays, sharded by rows over the mesh, from {name: [rows ...]}: this host's `rows(size, mesh)`.

    Without a size, `batch` is the whole batch, on every host.
    """
    def place(x):
        x = np.asarray(x)
        shape = (size or x.shape[0], *x.shape[1:])
        local = rows(size, mesh) if size else range(shape[0])

        def shard(index):
            first = bisect.bisect_left(local, index[0].start or 0)
            return x[(slice(first, first + len(range(shape[0])[index[0]])), *index[1:])]
        placement = NamedSharding(mesh, spec(('batch',) + (None,) * (x.ndim - 1), shape, mesh))
        return jax.make_array_from_callback(shape, placement, shard)
    return jax.tree.map(place, batch)


def splits(name):
    """Returns whether the mesh in context splits arrays along the logical axis `name`."""
    shape = jax.sharding.get_abstract_mesh().shape
    return any(shape.get(axis, 1) > 1 for axis in RULES[name])
