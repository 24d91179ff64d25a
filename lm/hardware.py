"""Data sheets of chips: FLOP/s, memory, bandwidth, interconnect, price; and clusters of them by name."""
import math
import re
import time
from dataclasses import dataclass

from lm import config
from lm.config.annotations import close

TERA, GIGA, MIB, GIB = 1e12, 1e9, 2 ** 20, 2 ** 30
GPU_SHARE = 0.92  # of a GPU's memory for arrays; the rest is for the driver, libraries and NCCL
LANES = 128  # of a TPU's vector and matrix units: a smaller head leaves the rest of them idle
PRICED = 'autumn 2026'


@dataclass(frozen=True)
class Chip:
    """Rates of one device as JAX counts them, dense, nominal by the vendor's data sheet, and what it reaches of them.

    flops: FLOP/s by dtype of a matrix product's inputs. memory: bytes that a program can allocate, less than the chip
    is sold with. bandwidth: HBM, bytes/s. efficiency: the share of `flops` that products with weights reach, fitted
    (`Reached`). link: bytes/s of one link in one direction, a device's share where two share a chip. torus: dimensions
    of the torus, each with a link to both sides; 0 for GPUs, joined by a switch within a node. network: bytes/s of a
    device's share of the network between slices or nodes (DCN). host: bytes/s in one direction between a device and
    the host's memory. vmem: bytes of the on-chip memory that the compiler places arrays in, 0 where there is none.
    price: dollars for an hour of a chip, on demand. cores: devices of one chip. named_by_core: whether a slice's name
    counts cores, two a chip. measured: whether the efficiency is one that `lm bench` measured.
    """

    name: str
    flops: dict
    memory: float
    bandwidth: float
    efficiency: float
    link: float
    network: float
    host: float
    vmem: float = 0
    torus: int = 0
    price: float = 0.0
    cores: int = 1
    named_by_core: bool = False
    measured: bool = False

    @property
    def platform(self):
        """'tpu' or 'cuda'."""
        return 'tpu' if self.torus else 'cuda'


@dataclass(frozen=True)
class Reached:
    """What training programs reach of the nominal rates, fitted to published step times (python -m lm.plan.fit).

    attention: share of the peak in attention's kernels, whose softmax is not a product, where a head fills the array.
    memory: share of the HBM traffic's time that products do not hide. links: share of the time of collectives within a
    slice or node that computation does not hide. network: times the nominal time that the network between them adds.
    """

    attention: float
    memory: float
    links: float
    network: float


# A median error of 8% on 41 steps of TPUs and of 6% on 71 of GPUs, each predicted without its own model in the fit.
REACHED = {'tpu': Reached(attention=0.21, memory=0.78, links=0.45, network=3.5),
           'cuda': Reached(attention=0.29, memory=1.06, links=0.50, network=0.63)}
UNPUBLISHED = {'tpu': 0.89, 'cuda': 0.75}  # efficiency of a chip without published steps: its platform's mean


def _tpu(name, bfloat16, gib, bandwidth, efficiency=UNPUBLISHED['tpu'], **rest):
    """Returns (name, Chip); `gib`: memory by libtpu 0.0.52. float32 products are one bfloat16 pass by default."""
    flops = {'bfloat16': bfloat16 * TERA, 'float32': bfloat16 * TERA}
    return name, Chip(name, flops, gib * GIB, bandwidth * GIGA, efficiency, **rest)


def _gpu(name, bfloat16, size, bandwidth, efficiency=UNPUBLISHED['cuda'], **rest):
    """Returns (name, Chip); `size`: bytes as the driver reports. float32 products are TF32 by default, half as fast."""
    flops = {'bfloat16': bfloat16 * TERA, 'float32': bfloat16 / 2 * TERA}
    return name, Chip(name, flops, size * GPU_SHARE, bandwidth * GIGA, efficiency, **rest)


# Sources, all nominal. TPUs: Google's pages of each chip (cloud.google.com/tpu/docs/v4 to /tpu7x, 2026): FLOP/s, HBM,
# interconnect (a chip's bandwidth over its links, in both directions), and network (the NICs of a host over its chips).
# Their host (PCI Express) and vmem: "How to Scale Your Model" (Austin et al. 2025), chapter 2, whose rates of links are
# measured, a tenth lower than nominal. v7x: two devices share a chip's links (1200 GB/s over six, both directions), its
# network and its host, whose rate is not published: v6e's stands for it.
# GPUs: NVIDIA's data sheets of A100, H100, H200, HGX B200, L4, AD102 and GA102; link: NVLink, or PCI Express 4.0 x16
# where there is none; host: PCI Express 4.0 x16, 5.0 for Hopper and Blackwell. Their networks are an eighth of those of
# the instances that are priced below: p4d and p4de 400 Gbit/s, p5, p5en and p6-b200 3200, and g6.48xlarge, for L4, 100;
# of desktop cards, 10 Gbit/s Ethernet.
# Prices are on demand. TPUs: https://cloud.google.com/tpu/pricing for the United States, October 2026, and SkyPilot's
# catalogue of 2026; v4 as there in January 2025. GPUs: an eighth of Amazon EC2's in us-east-1, September 2026:
# p4d.24xlarge 21.96, p4de.24xlarge 27.45, p5.48xlarge 55.04, p5en.48xlarge 63.30, p6-b200.48xlarge 113.93.
# Efficiencies are fitted as Reached is: of v4, v5e, v5p, v6e, A100 and H100, whose compute units H200 has.
CHIPS = dict([
    _tpu('v4', 275, 30.75, 1200, efficiency=0.88, link=50e9, network=6.25e9, host=16e9, vmem=32 * MIB, torus=3,
         price=3.22, named_by_core=True),
    _tpu('v5e', 197, 15.75, 819, efficiency=0.96, link=50e9, network=3.125e9, host=16e9, vmem=128 * MIB, torus=2,
         price=1.20),
    _tpu('v5p', 459, 95.73, 2765, efficiency=0.88, link=100e9, network=6.25e9, host=16e9, vmem=128 * MIB, torus=3,
         price=4.20, named_by_core=True),
    _tpu('v6e', 918, 31.24, 1640, efficiency=0.89, link=100e9, network=12.5e9, host=32e9, vmem=128 * MIB, torus=2,
         price=2.70),
    _tpu('v7x', 1153.5, 94.74, 3690, link=50e9, network=6.25e9, host=16e9, vmem=64 * MIB, torus=3,
         price=12.00, cores=2, named_by_core=True),
    _gpu('a100-40g', 312, 42331013120, 1555, efficiency=0.87, link=300e9, network=6.25e9, host=32e9, price=2.75),
    _gpu('a100', 312, 85100068864, 2039, efficiency=0.87, link=300e9, network=6.25e9, host=32e9, price=3.43),
    _gpu('h100', 989, 84942979072, 3350, efficiency=0.64, link=450e9, network=50e9, host=64e9, price=6.88),
    _gpu('h200', 989, 151397597184, 4800, efficiency=0.64, link=450e9, network=50e9, host=64e9, price=7.91),
    _gpu('b200', 2250, 191514411008, 7700, link=900e9, network=50e9, host=64e9, price=14.24),
    _gpu('l4', 121, 24e9, 300, link=32e9, network=1.5625e9, host=32e9),
    _gpu('rtx4090', 165, 24e9, 1008, link=32e9, network=1.25e9, host=32e9),
    _gpu('rtx3090', 71, 24e9, 936, link=32e9, network=1.25e9, host=32e9),
])

# Patterns in the device kind that JAX reports -> the chip. The first row whose patterns all occur counts, so longer
# names stand before those they contain.
KINDS = {
    ('TPU', 'v7'): 'v7x', ('TPU', '7x'): 'v7x', ('TPU', 'v6'): 'v6e', ('TPU', 'v5', 'lite'): 'v5e',
    ('TPU', 'v5e'): 'v5e', ('TPU', 'v5'): 'v5p', ('TPU', 'v4'): 'v4',
    ('B200',): 'b200', ('H200',): 'h200', ('H100',): 'h100', ('A100', '80GB'): 'a100', ('A100',): 'a100-40g',
    (r'\bL4\b',): 'l4', ('4090',): 'rtx4090', ('3090',): 'rtx3090',
}
NODE = 8  # GPUs of a node, joined by one switch
LARGEST = {'v4': 4096, 'v5e': 256, 'v5p': 4096, 'v6e': 256, 'v7x': 8192}  # power of two of chips in one slice


@dataclass(frozen=True)
class Cluster:
    """`count` slices of TPUs or nodes of GPUs, each of a shape: (16, 16) is a torus, (8,) a node."""

    name: str
    chip: Chip
    shape: tuple
    count: int = 1

    @property
    def chips(self):
        return math.prod(self.shape) * self.count

    @property
    def devices(self):
        return self.chips * self.chip.cores


def find(kind):
    """Returns the Chip that a JAX device kind such as 'NVIDIA H100 80GB HBM3' or 'TPU v5 lite' names, or None."""
    for words, name in KINDS.items():
        if all(re.search(word, kind, re.IGNORECASE) for word in words):
            return CHIPS[name]
    return None


def cluster(name):
    """Returns the Cluster of a name: 'v5e-256', 'v5p:4x8x8', '2xv5e-256' (two slices), '8xh100' or 'h100'.

    The number in a v4, v5p or v7x slice's name counts cores, two a chip, as Google's does. Raises config.Error.
    """
    match = re.fullmatch(r'(?:(\d+)x)?(a100-40g|[a-z0-9]+?)(?:-(\d+)|:([\dx]+))?', name.lower())
    if not match or (match[2] not in CHIPS):
        near = close(match[2] if match else name, CHIPS) or list(CHIPS)
        raise config.Error(f'{name!r} is no known chip; try {", ".join(near)}, as in v5e-256 or 8xh100.')
    chip, count = CHIPS[match[2]], int(match[1] or 1)
    if not chip.torus:
        return _nodes(name, chip, count)
    if match[4]:
        shape = tuple(int(side or 0) for side in match[4].split('x'))
        if len(shape) != chip.torus or min(shape) < 1:
            cube = 'x'.join('4' * chip.torus)
            raise config.Error(f'{name!r} is no torus of {chip.torus} dimensions; try {chip.name}:{cube}.')
        return Cluster(name, chip, shape, max(1, count))
    return Cluster(name, chip, _torus(name, chip, int(match[3] or 0)), max(1, count))


def here(kind, devices):
    """Returns the Cluster of so many devices of a JAX device kind, or None for an unknown kind."""
    chip = find(kind)
    if chip is None:
        return None
    if not chip.torus:
        return Cluster(kind, chip, (min(devices, NODE),), -(-devices // NODE))
    chips = devices // chip.cores or 1
    return Cluster(kind, chip, (chips,) + (1,) * (chip.torus - 1) if chips & (chips - 1) else _sides(chips, chip.torus))


def _nodes(name, chip, count):
    if count < 1 or (count > NODE and count % NODE):
        near = max(1, round(count / NODE)) * NODE
        raise config.Error(f'{name!r} is no whole number of nodes with {NODE} GPUs; try {near}x{chip.name}.')
    return Cluster(name, chip, (min(count, NODE),), max(1, count // NODE))


def _torus(name, chip, number):
    """Returns the sides of the slice with this number in its name; raises config.Error where there is none."""
    per_chip = 2 if chip.named_by_core else 1
    chips, most = number // per_chip, LARGEST[chip.name]
    if chips < 1 or chips & (chips - 1) or number % per_chip or chips > most:
        near = min(most, 2 ** max(0, round(math.log2(max(1, chips)))))
        slices = -(-chips // most)
        remedy = f'{chip.name}-{near * per_chip}' if chips <= most else f'{slices}x{chip.name}-{most * per_chip}'
        counted = ' (the number counts cores, two a chip)' if chip.named_by_core else ''
        sides = f', or give its sides: {chip.name}:4x4x12' if chip.torus == 3 else ''
        raise config.Error(f'{name!r} is no slice of a power of two chips up to {most}{counted}; try {remedy}{sides}.')
    return _sides(chips, chip.torus)


def _sides(chips, dimensions):
    """Returns the sides of a torus of 2 ** n chips, powers of two as equal as possible, the longer ones last."""
    if dimensions == 3 and chips <= 4:
        return {1: (1, 1, 1), 2: (1, 2, 1), 4: (2, 2, 1)}[chips]
    power = chips.bit_length() - 1
    return tuple(2 ** (power // dimensions + (side >= dimensions - power % dimensions)) for side in range(dimensions))


def measure_gemm(dtype, size=1024, seconds=0.5):
    """Returns the most FLOP/s that a square matrix product of this size reaches on the first local device."""
    import jax
    import jax.numpy as jnp
    multiply = jax.jit(lambda a, b: a @ b)
    a = jnp.ones((size, size), dtype)
    multiply(a, a).block_until_ready()
    best, start = float('inf'), time.perf_counter()
    while time.perf_counter() - start < seconds:
        begin = time.perf_counter()
        multiply(a, a).block_until_ready()
        best = min(best, time.perf_counter() - begin)
    return 2 * size ** 3 / best
