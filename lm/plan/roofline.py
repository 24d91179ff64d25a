"""Seconds of a step: at the nominal rates of the data sheet, its floor, and at what training programs reach of them."""
import math
from dataclasses import dataclass
from itertools import combinations

from lm import hardware

LOW, HIGH = 0.75, 1.5  # of the predicted seconds: the range in which at least four in five published steps lie


@dataclass(frozen=True)
class Roofline:
    """Seconds {part: seconds} of a step: nominal, at the data sheet's rates, and `parts`, as they add up to a step.

    Parts: products with weights, attention's kernels, HBM traffic ('memory'), collectives over links within a slice or
    node ('links') and between them ('network'), copies to and from the host ('host').
    """

    nominal: dict
    parts: dict

    @property
    def bound(self):
        """What the step is bound by: the part that adds most to it."""
        return max(self.parts, key=self.parts.get)

    @property
    def floor(self):
        """Seconds of a step that reaches every nominal rate and overlaps everything."""
        compute = self.nominal['products'] + self.nominal['attention']
        return max(compute, *(self.nominal[part] for part in ('memory', 'links', 'network', 'host')))

    @property
    def seconds(self):
        """Predicted seconds of a step; copies to the host are hidden unless they take longer than all the rest."""
        return max(sum(self.parts.values()), self.nominal['host'])

    @property
    def range(self):
        """(low, high) seconds around the prediction."""
        return LOW * self.seconds, HIGH * self.seconds

    def holds(self, measured):
        """Returns whether measured seconds lie inside the range."""
        low, high = self.range
        return low <= measured <= high


def roofline(cluster, mesh, dtype, cost):
    """Returns the Roofline of a step on a mesh {axis: size} of a cluster; `cost` is what costs.measure returns."""
    chip, attention = cluster.chip, cost['attention']
    peak, speeds = chip.flops[dtype], bandwidths(cluster, mesh)
    nominal = {'products': (cost['flops'] - sum(attention.values())) / peak,
               'attention': sum(attention.values()) / peak, 'memory': cost['hbm_bytes'] / chip.bandwidth,
               'links': 0.0, 'network': 0.0, 'host': 0.0}
    for (_, axes), sent in cost['collectives'].items():
        crosses = axes != 'host' and any(speeds[axis.partition(':')[0]][1] for axis in axes.split('+'))
        part = 'host' if axes == 'host' else 'network' if crosses else 'links'
        nominal[part] += sent / collective_bandwidth(cluster, speeds, axes)
    return Roofline(nominal, added(chip, nominal, attention, hardware.REACHED[chip.platform]))


def added(chip, nominal, attention, rates):
    """Returns the seconds {part: seconds} that the parts of a step add to it at `rates`, a hardware.Reached.

    attention: {head size: FLOPs} of kernels; a head smaller than a TPU's lanes leaves the rest of them idle.
    """
    total, filled = sum(attention.values()), 1
    if total and chip.torus:
        filled = total / sum(flops / min(1, size / hardware.LANES) for size, flops in attention.items())
    return {'products': nominal['products'] / chip.efficiency,
            'attention': nominal['attention'] / (rates.attention * filled), 'memory': rates.memory * nominal['memory'],
            'links': rates.links * nominal['links'], 'network': rates.network * nominal['network']}


def collective_bandwidth(cluster, speeds, axes):
    """Returns the bytes/s of a collective along axes joined by '+': of all their links, or of the network they cross.

    `speeds` is what `bandwidths` returns. A collective over a part of an axis on a torus, such as 'fsdp:16', has the
    links of the sides that this part fills. The axis 'host' is the copy to and from the host's memory.
    """
    if axes == 'host':
        return cluster.chip.host
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
