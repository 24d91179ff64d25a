"""TPU slices by name: their chips, hosts, topology and price, and what Google Cloud calls them."""

import re
from collections import namedtuple

import shell

PRICED = 'autumn 2026'  # list prices on demand in the United States, https://cloud.google.com/tpu/pricing
# accelerator: the name's beginning in Cloud TPU. cores: how many one chip counts for in the name. price: dollars for an
# hour of a chip. limit: most chips of a slice. runtime, zone: of a queued resource; a generation without them has none.
Generation = namedtuple('Generation', 'accelerator cores price limit dimensions node runtime zone')
GENERATIONS = {
    'v4': Generation('v4', 2, 3.22, 4096, 3, 'tpu-v4-podslice', 'tpu-ubuntu2204-base', 'us-central2-b'),
    'v5e': Generation('v5litepod', 1, 1.20, 256, 2, 'tpu-v5-lite-podslice', 'v2-alpha-tpuv5-lite', 'us-west4-a'),
    'v5p': Generation('v5p', 2, 4.20, 6144, 3, 'tpu-v5p-slice', 'v2-alpha-tpuv5', 'us-east5-a'),
    'v6e': Generation('v6e', 1, 2.70, 256, 2, 'tpu-v6e-slice', 'v2-alpha-tpuv6e', 'us-east5-b'),
    'v7x': Generation('tpu7x', 2, 12.00, 9216, 3, 'tpu7x', None, None),
}
ALIASES = {'v5litepod': 'v5e', 'v5lite': 'v5e', 'tpu7x': 'v7x', 'v7': 'v7x', 'tpu-v4': 'v4'}
FLAT = {1: '1x1', 4: '2x2', 8: '2x4', 16: '4x4', 32: '4x8', 64: '8x8', 128: '8x16', 256: '16x16'}

Slice = namedtuple('Slice', 'accelerator chips hosts topology generation')


def find(name):
    """Returns the Slice that a name such as v5e-16 or v5litepod-16 means; raises a Fault with the nearest names."""
    match = re.fullmatch(r'(.+)-([0-9]{1,9})', name)
    kind = match and ALIASES.get(match[1], match[1])
    if not match or kind not in GENERATIONS:
        raise shell.Fault(f'{name!r} is no TPU slice; try one of {", ".join(f"{kind}-16" for kind in GENERATIONS)}.')
    generation, size = GENERATIONS[kind], int(match[2])
    sizes = sorted(chips * generation.cores for chips in chips_of(generation))
    if size not in sizes:
        near = sorted(sorted(sizes, key=lambda other: abs(other - size))[:2])
        counted = 'cores, two a chip' if generation.cores == 2 else 'chips'
        raise shell.Fault(f'{name} does not exist ({kind} is counted in {counted}); '
                          f'try {" or ".join(f"{kind}-{other}" for other in near)}.')
    chips = size // generation.cores
    hosts = 1 if generation.dimensions == 2 and chips <= 8 else chips // 4
    return Slice(f'{generation.accelerator}-{size}', chips, hosts, topology(generation, chips), generation)


def several(kind):
    """Returns the name of the smallest slice of several hosts of the same generation as a Slice."""
    name = next(name for name, generation in GENERATIONS.items() if generation is kind.generation)
    return f'{name}-{16 if kind.generation.dimensions == 2 else 8 * kind.generation.cores}'


def chips_of(generation):
    """Returns how many chips a slice of a generation can have."""
    if generation.dimensions == 2:
        return list(FLAT)
    return [4, 8, 16, 32, *range(64, generation.limit + 1, 64)]


def topology(generation, chips):
    """Returns the shape of a slice: AxB, or the most cubic AxBxC whose sides are 1, 2 or multiples of 4."""
    if generation.dimensions == 2:
        return FLAT[chips]
    small = {4: '2x2x1', 8: '2x2x2', 16: '2x2x4', 32: '2x4x4'}
    if chips in small:
        return small[chips]
    cubes = chips // 64
    shapes = [(a, b, cubes // a // b) for a in range(1, cubes + 1) if cubes % a == 0
              for b in range(a, cubes // a + 1) if cubes // a % b == 0 and cubes // a // b >= b]
    return 'x'.join(str(4 * side) for side in min(shapes, key=lambda sides: sides[2] - sides[0]))


def cost(kind, count, options):
    """Returns the sentence that states what `count` slices cost; `options` are price, hours and spot."""
    price = options.price or kind.generation.price
    hourly = price * kind.chips * count
    source = 'as you say' if options.price else f'list price on demand, {PRICED}'
    total = f', {hourly * options.hours:,.2f} dollars for {options.hours:g} hours' if options.hours else ''
    spot = '; spot costs less, and varies' if options.spot and not options.price else ''
    slices = f'{count} slices of ' if count > 1 else ''
    return (f'{slices}{kind.accelerator}: {kind.chips} chips, {kind.hosts} {"host" if kind.hosts == 1 else "hosts"}; '
            f'{hourly:,.2f} dollars an hour{total} ({price:.2f} a chip-hour, {source}{spot})')
