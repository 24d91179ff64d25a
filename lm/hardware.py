"""What a chip can do: peak FLOP/s by dtype, memory and bandwidth, from its vendor's data sheet (dense, no sparsity)."""
import os
import time
from dataclasses import dataclass

TERA, GIGA = 1e12, 1e9


@dataclass(frozen=True)
class Chip:
    """flops: peak FLOP/s by dtype of a matrix product's inputs; memory: bytes; bandwidth: of memory, bytes/s."""

    name: str
    flops: dict
    memory: float
    bandwidth: float


def _chip(name, bfloat16, float32, memory, bandwidth):
    return Chip(name, {'bfloat16': bfloat16 * TERA, 'float32': float32 * TERA}, memory * GIGA, bandwidth * GIGA)


# Words found in the device kind that JAX reports -> the chip. The first row whose words all occur is taken, so longer
# names stand before those they contain. By default float32 products run as one bfloat16 pass on TPU, as TF32 on GPU.
CHIPS = {
    ('TPU', 'v7'): _chip('v7x', 2307, 2307, 192, 7380),
    ('TPU', '7x'): _chip('v7x', 2307, 2307, 192, 7380),
    ('TPU', 'v6'): _chip('v6e', 918, 918, 32, 1640),
    ('TPU', 'v5', 'lite'): _chip('v5e', 197, 197, 16, 819),
    ('TPU', 'v5e'): _chip('v5e', 197, 197, 16, 819),
    ('TPU', 'v5'): _chip('v5p', 459, 459, 95, 2765),
    ('TPU', 'v4'): _chip('v4', 275, 275, 32, 1228),
    ('B200',): _chip('b200', 2250, 1125, 180, 8000),
    ('H200',): _chip('h200', 989, 494, 141, 4800),
    ('H100',): _chip('h100', 989, 494, 80, 3350),
    ('A100', '80GB'): _chip('a100', 312, 156, 80, 2039),
    ('A100',): _chip('a100-40g', 312, 156, 40, 1555),
    ('L4',): _chip('l4', 121, 60, 24, 300),
    ('4090',): _chip('rtx4090', 165, 83, 24, 1008),
    ('3090',): _chip('rtx3090', 71, 36, 24, 936),
}


def find(kind):
    """Returns the Chip that a JAX device kind such as 'NVIDIA H100 80GB HBM3' or 'TPU v5 lite' names, or None."""
    for words, chip in CHIPS.items():
        if all(word.lower() in kind.lower() for word in words):
            return chip
    return None


def measure_gemm(dtype, size=1024, seconds=0.5):
    """Returns the FLOP/s that square matrix products of this size reach on the first local device, the best of many."""
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


def tune(environ=os.environ):
    """Adds 512-bit vectors to XLA_FLAGS, which make a CPU faster; a width that is there already stays.

    A device on each core would be faster still for small models, but with as few threads as cores XLA's in-process
    all-reduce was seen to starve and abort a run, so that a machine counts as one device unless XLA_FLAGS says more.
    """
    given, flag = environ.get('XLA_FLAGS', ''), '--xla_cpu_prefer_vector_width'
    if flag not in given:
        environ['XLA_FLAGS'] = f'{given} {flag}=512'.strip()
