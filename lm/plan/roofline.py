"""The roofline of a step: seconds of compute, of HBM traffic and of collectives at the rates of the data sheet."""
import math
from dataclasses import dataclass
from itertools import combinations

HOST = {'tpu': 15e9, 'cuda': 50e9}  # bytes/s between a device and the host's memory: its share of PCI Express


@dataclass(frozen=True)
class Roofline:
    """Seconds that a step needs for arithmetic, for HBM traffic, and for each collective, by (kind, axes)."""

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
        """What the step is bound by: the part that takes longest."""
        return max(self.parts, key=self.parts.get)

    @property
    def least(self):
        """Seconds of a step with full overlap: all parts at the same time."""
        return max(self.parts.values())

    @property
    def most(self):
        """Seconds of a step without overlap of collectives: one after the other, after arithmetic and HBM traffic."""
        return max(self.compute, self.memory) + self.interconnect


def roofline(cluster, mesh, dtype, cost):
    """Returns the Roofline of a step on a mesh {axis: size} of a cluster; `cost` is what costs.measure returns."""
    speeds = bandwidths(cluster, mesh)
    collectives = {(kind, axes): sent / collective_bandwidth(cluster, speeds, axes)
                   for (kind, axes), sent in cost['collectives'].items()}
    return Roofline(cost['flops'] / cluster.chip.flops[dtype], cost['hbm_bytes'] / cluster.chip.bandwidth, collectives)


def collective_bandwidth(cluster, speeds, axes):
    """Returns the bytes/s of a collective along axes joined by '+': of all their links, or of the network they cross.

    `speeds` is what `bandwidths` returns. A collective over a part of an axis on a torus, such as 'fsdp:16', has the
    links of the sides that this part fills. The axis 'host' is the copy to and from the host's memory.
    """
    if axes == 'host':
        return HOST[cluster.chip.platform]
    used = []
    for name, _, part in (axis.partition(':') for axis in axes.split('+')):
        partial = part and cluster.chip.torus and not speeds[name][1]
        used.append(bandwidths(cluster, {name: int(part)})[name] if partial else speeds[name])
    inside = [speed for speed, crosses in used if not crosses]
    across = [speed for speed, crosses in used if crosses]
    return min(across) if across else sum(inside) if cluster.chip.torus else min(inside)


def bandwidths(cluster, mesh):
    """Returns {axis: (bytes/s that a device sends along it, whether it crosses the network)} of a mesh {axis: size}.

    Later axes of the mesh are nearer together. On a torus an axis that fills whole dimensions has their links, in both
    directions where they wrap around; a shorter axis has one link. Along an axis over nodes, its devices in one node
    send through all of their network cards.
    """
    island = math.prod(cluster.shape) * cluster.chip.cores  # devices of one slice or node
    free = [*cluster.shape] + ([cluster.chip.cores] if cluster.chip.cores > 1 else [])  # dimensions not yet filled
    speeds = {}
    for axis in sorted(mesh, key=lambda name: -mesh[name]):
        stride = math.prod(list(mesh.values())[list(mesh).index(axis) + 1:])
        near = max(1, min(mesh[axis], island // stride))
        if near < mesh[axis]:
            speeds[axis] = cluster.chip.network * near, True
        elif not cluster.chip.torus:
            speeds[axis] = cluster.chip.link, False
        else:
            filled = _dimensions(near, free)
            for side in filled:
                free.remove(side)
            speeds[axis] = cluster.chip.link * (sum(_directions(cluster.chip, side) for side in filled) or 1), False
    return speeds


def _dimensions(size, sides):
    """Returns the sides of a torus, as many as possible, that an axis of this size fills; () where it fills none."""
    for count in range(len(sides), 0, -1):
        for chosen in combinations(sides, count):
            if math.prod(chosen) == size and size > 1:
                return chosen
    return ()


def _directions(chip, side):
    """Returns 2 where a side of a torus wraps around, else 1: multiples of 16 wrap in 2D (v5e, v6e), of 4 in 3D."""
    return 2 if side % (16 if chip.torus == 2 else 4) == 0 else 1
