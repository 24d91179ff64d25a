"""How fast a step can be at most: compute, memory and links at the rates of the data sheet."""
import math
from dataclasses import dataclass
from itertools import combinations

HOST = {'tpu': 15e9, 'cuda': 50e9}  # bytes/s of PCI Express, a device's share


@dataclass(frozen=True)
class Roofline:
    """Seconds that a step spends at least on arithmetic, on memory, and on each collective, by (kind, axes)."""

    compute: float
    memory: float
    collectives: dict

    @property
    def interconnect(self):
        return sum(self.collectives.values())

    @property
    def parts(self):
        return {'compute': self.compute, 'memory': self.memory, 'interconnect': self.interconnect}

    @property
    def bound(self):
        """The part that takes longest."""
        return max(self.parts, key=self.parts.get)

    @property
    def least(self):
        """Seconds of a step whose parts overlap wholly."""
        return max(self.parts.values())

    @property
    def most(self):
        """Seconds of a step in which nothing waits for anything but arithmetic and links follow on each other."""
        return max(self.compute, self.memory) + self.interconnect


def roofline(cluster, sizes, dtype, measured):
    """Returns the Roofline of what costs.measure found for a mesh of `sizes` on a cluster."""
    speeds = bandwidths(cluster, sizes)
    collectives = {(kind, axes): sent / joint(cluster, speeds, axes)
                   for (kind, axes), sent in measured['collectives'].items()}
    return Roofline(measured['flops'] / cluster.chip.flops[dtype], measured['memory_bytes'] / cluster.chip.bandwidth,
                    collectives)


def joint(cluster, speeds, axes):
    """Returns the bytes/s of a collective along axes joined by '+': their links together, or the network they cross.

    `speeds` is what `bandwidths` returns. A collective over a part of an axis on a torus, such as 'fsdp:16', has the
    links of the sides that this part fills. The axis 'host' is the way to the host's memory.
    """
    if axes == 'host':
        return HOST[cluster.chip.platform]
    each = []
    for name, _, part in (axis.partition(':') for axis in axes.split('+')):
        alone = part and cluster.chip.torus and not speeds[name][1]
        each.append(bandwidths(cluster, {name: int(part)})[name] if alone else speeds[name])
    inside = [speed for speed, crosses in each if not crosses]
    across = [speed for speed, crosses in each if crosses]
    return min(across) if across else sum(inside) if cluster.chip.torus else min(inside)


def bandwidths(cluster, sizes):
    """Returns {axis: (bytes/s that a device sends along it, whether it crosses the network)} of a mesh.

    Later axes of the mesh are nearer together. On a torus an axis that fills whole dimensions has their links both ways
    round, where those wrap; a shorter one has a line's. Along an axis over nodes, its devices of a node share their
    network cards.
    """
    island = math.prod(cluster.shape) * cluster.chip.cores
    sides = [*cluster.shape] + ([cluster.chip.cores] if cluster.chip.cores > 1 else [])
    found = {}
    for axis in sorted(sizes, key=lambda name: -sizes[name]):
        stride = math.prod(list(sizes.values())[list(sizes).index(axis) + 1:])
        near = max(1, min(sizes[axis], island // stride))
        if near < sizes[axis]:
            found[axis] = cluster.chip.network * near, True
        elif not cluster.chip.torus:
            found[axis] = cluster.chip.link, False
        else:
            filled = _fill(near, sides)
            found[axis] = cluster.chip.link * (sum(_ways(cluster.chip, side) for side in filled) or 1), False
    return found


def _fill(size, sides):
    """Returns the dimensions that an axis of this size fills, the most there are, and takes them out of `sides`."""
    for count in range(len(sides), 0, -1):
        for chosen in combinations(sides, count):
            if math.prod(chosen) == size and size > 1:
                for side in chosen:
                    sides.remove(side)
                return chosen
    return ()


def _ways(chip, side):
    """Returns how many directions a ring over a whole dimension goes: 2 where its ends are joined."""
    return 2 if side % (16 if chip.torus == 2 else 4) == 0 else 1
