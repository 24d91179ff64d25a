"""How a transformer knows the order of its tokens: one frozen dataclass a scheme, overriding the hook it needs.

A `Position` acts in attention, layer by layer; an `AbsolutePosition` is added to the embeddings.
"""
import abc
import math
from dataclasses import dataclass
from typing import Annotated

import jax
import jax.numpy as jnp

from lm import config
from lm.nn.weights import normal, weight


@dataclass(frozen=True)
class Position:
    """Base of the schemes that act on queries and keys or on their scores."""

    def __post_init__(self):
        config.check(self)

    def check(self, head_size):
        """Returns nothing; raises config.Error if the scheme does not support heads of `head_size` channels."""

    def angles(self, positions, head_size):
        """Returns the (sin, cos) [B T H/2] that rotate queries and keys at positions [B T], or None."""
        return None

    def table(self, scope, heads):
        """Returns what `score` needs of each head, or None where scores carry no position."""
        return None

    def score(self, table, query, key):
        """Returns what to add to attention scores [N T S] of queries at slots [T] and keys at slots [S]."""
        raise NotImplementedError(f'{type(self).__name__} has a table but no score.')


@dataclass(frozen=True)
class NoPE(Position):
    """No positions: causal attention alone breaks the symmetry (Kazemnejad et al. 2023, arXiv:2305.19466)."""


@dataclass(frozen=True)
class AbsolutePosition(abc.ABC):
    """Base of the schemes that are added to the embeddings."""

    limit = 0  # the most tokens a text may have, 0 for any number

    def __post_init__(self):
        config.check(self)

    def check(self, width):  # noqa: B027
        """Returns nothing; raises config.Error if the scheme does not support embeddings of `width` channels."""

    @abc.abstractmethod
    def add(self, scope, x, positions):
        """Returns the embeddings x [B T D] with position information added, given positions [B T]."""


@dataclass(frozen=True)
class Learned(AbsolutePosition):
    """One trained vector for each of `length` positions, as in GPT-2."""

    length: config.Size = 1024

    @property
    def limit(self):
        return self.length

    def add(self, scope, x, positions):
        if x.shape[1] > self.length:
            raise config.Error(f'{x.shape[1]} tokens do not fit position.length={self.length}; '
                               f'try model.embedding.position.length={x.shape[1]}.')
        table = weight(scope, 'positions', {'position': self.length, 'embed': x.shape[-1]}, normal(0.02)).value
        return x + jnp.take(table, positions, axis=0, mode='clip').astype(x.dtype)


@dataclass(frozen=True)
class Sinusoidal(AbsolutePosition):
    """Fixed sines and cosines of geometrically spaced wavelengths (Vaswani et al. 2017, arXiv:1706.03762)."""

    base: Annotated[float, config.Interval(1, ends='(]')] = 10000.0

    def check(self, width):
        if width % 2:
            raise config.Error(f'width={width} is odd and Sinusoidal fills pairs; try width={width + 1}.')

    def add(self, scope, x, positions):
        half = x.shape[-1] // 2
        angle = positions[..., None] * jnp.exp(-math.log(self.base) * jnp.arange(half) / half)
        return x + jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], -1).astype(x.dtype)


@dataclass(frozen=True)
class Rope(Position):
    """Rotary embedding, in the halves layout of Llama (Su et al. 2021, arXiv:2104.09864).

    `factor` stretches positions linearly (Chen et al. 2023, arXiv:2306.15595). With `original` > 0, the context length
    of pre-training, only wavelengths longer than original/low are stretched in full, those shorter than original/high
    not at all, and those between smoothly (Llama 3.1). The first `fraction` of each head turns, the rest stays.
    """

    base: Annotated[float, config.Interval(1, ends='(]')] = 10000.0
    factor: config.Positive = 1.0
    original: config.Count = 0
    low: config.Positive = 1.0
    high: config.Positive = 4.0
    fraction: Annotated[float, config.Interval(0, 1, '(]')] = 1.0

    def __post_init__(self):
        super().__post_init__()
        if self.low >= self.high:
            raise config.Error(f'low={self.low} is not below high={self.high}; try low=1.0, high=4.0.')

    def check(self, head_size):
        if head_size % 2:
            raise config.Error(f'head_dim={head_size} is odd and Rope turns pairs; try head_dim={head_size + 1}.')

    def frequencies(self, head_size):
        """Returns the radians per position [fraction * H / 2]."""
        half = round(head_size * self.fraction) // 2
        frequency = self.base ** (-jnp.arange(half, dtype=jnp.float32) / half)
        if self.factor == 1:
            return frequency
        if not self.original:
            return frequency / self.factor
        turns = self.original * frequency / (2 * math.pi)
        keep = jnp.clip((turns - self.low) / (self.high - self.low), 0, 1)
        return frequency * (keep + (1 - keep) / self.factor)

    def angles(self, positions, head_size):
        angle = positions[..., None] * self.frequencies(head_size)
        return jnp.sin(angle), jnp.cos(angle)


@dataclass(frozen=True)
class Yarn(Position):
    """Rope stretched by `factor` beyond `original` positions where a pair turns fewer than `slow` times in them, not at
    all where more than `fast`, and linearly by the pair's number between (Peng et al. 2023, arXiv:2309.00071).

    whole: pairs at the ends of the ramp are rounded to whole numbers. growth: factor of what turns of queries and keys,
    None for 0.1 ln(factor) + 1. The first `fraction` of each head turns, the rest stays.
    """

    base: Annotated[float, config.Interval(1, ends='(]')] = 10000.0
    factor: Annotated[float, config.Interval(1, ends='(]')] = 32.0
    original: config.Size = 4096
    fast: config.Positive = 32.0
    slow: config.Positive = 1.0
    whole: bool = True
    growth: config.Positive | None = None
    fraction: Annotated[float, config.Interval(0, 1, '(]')] = 1.0

    def check(self, head_size):
        Rope(self.base).check(head_size)

    def frequencies(self, head_size):
        """Returns the radians per position [fraction * H / 2]."""
        plain = Rope(self.base, fraction=self.fraction).frequencies(head_size)
        half = len(plain)
        low, high = (half * math.log(self.original / (turns * 2 * math.pi)) / math.log(self.base)
                     for turns in (self.fast, self.slow))
        if self.whole:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, 2 * half - 1)
        stretched = jnp.clip((jnp.arange(half) - low) / max(high - low, 0.001), 0, 1)
        return plain * (1 - stretched + stretched / self.factor)

    def angles(self, positions, head_size):
        angle, growth = positions[..., None] * self.frequencies(head_size), self.growth
        if growth is None:
            growth = 0.1 * math.log(self.factor) + 1
        return growth * jnp.sin(angle), growth * jnp.cos(angle)


@dataclass(frozen=True)
class LongRope(Position):
    """Rope whose pairs turn slower, each by a factor of its own (Ding et al. 2024, arXiv:2402.13753).

    The factors are `short` in rows whose positions are all below `original`, the context length of pre-training, else
    `long`; as many pairs of each head turn as there are factors. growth: factor of queries and keys. Keys in a cache
    stay as they were turned: have a text that will be longer than `original` begin so, or give `long` for `short`.
    """

    short: tuple[config.Positive, ...]
    long: tuple[config.Positive, ...]
    base: Annotated[float, config.Interval(1, ends='(]')] = 10000.0
    original: config.Size = 4096
    growth: config.Positive = 1.0

    def __post_init__(self):
        super().__post_init__()
        if not 0 < len(self.short) == len(self.long):
            raise config.Error(f'short has {len(self.short)} factors and long has {len(self.long)}; give each pair of '
                               'a head that turns one in both.')

    def check(self, head_size):
        Rope(self.base).check(head_size)
        if 2 * len(self.short) > head_size:
            raise config.Error(f'head_dim={head_size} has {head_size // 2} pairs and short has {len(self.short)} '
                               'factors; give no more factors than pairs.')

    def angles(self, positions, head_size):
        longer = jnp.max(positions, axis=1)[:, None, None] >= self.original
        factors = jnp.where(longer, jnp.array(self.long), jnp.array(self.short))
        angle = positions[..., None] * Rope(self.base).frequencies(2 * len(self.short)) / factors
        return self.growth * jnp.sin(angle), self.growth * jnp.cos(angle)


@dataclass(frozen=True)
class Alibi(Position):
    """A penalty on attention that grows linearly with distance, steeper in some heads (Press et al. 2021)."""

    def table(self, scope, heads):
        return alibi_slopes(heads)

    def score(self, table, query, key):
        return -table[:, None, None] * jnp.abs(query[:, None] - key[None, :])


@dataclass(frozen=True)
class Relative(Position):
    """A trained scalar per head and bucketed distance, shared by all layers (T5, Raffel et al. 2019)."""

    buckets: config.Size = 32
    distance: config.Size = 128
    causal: bool = True

    def __post_init__(self):
        super().__post_init__()
        near = self.buckets // (2 if self.causal else 4)  # distances that are exact
        if near < 1 or self.distance <= near:
            raise config.Error(f'buckets={self.buckets}, distance={self.distance} leave no logarithmic buckets; '
                               'try buckets=32, distance=128.')

    def table(self, scope, heads):
        return weight(scope, 'relative', {'position': self.buckets, 'heads': heads}, normal(0.02)).value

    def score(self, table, query, key):
        return jnp.moveaxis(table[self.bucket(key[None, :] - query[:, None])], -1, 0)

    def bucket(self, offset):
        """Returns the bucket of each key offset (key minus query): exact when near, logarithmic up to `distance`."""
        buckets = self.buckets if self.causal else self.buckets // 2
        side = 0 if self.causal else jnp.where(offset > 0, buckets, 0)
        far = jnp.maximum(-offset, 0) if self.causal else jnp.abs(offset)
        exact = buckets // 2
        scaled = jnp.log(jnp.maximum(far, 1) / exact) / math.log(self.distance / exact) * (buckets - exact)
        return side + jnp.where(far < exact, far, jnp.minimum(exact + scaled.astype(jnp.int32), buckets - 1))


def alibi_slopes(heads):
    """Returns the slope of each head [N]: powers of 2^(-8/N), interleaved where N is not a power of two."""
    power = 2 ** int(math.log2(heads))
    slopes = [2 ** (-8 * (i + 1) / power) for i in range(power)]
    slopes += [2 ** (-4 * (i + 1) / power) for i in range(0, 2 * (heads - power), 2)]
    return jnp.array(slopes, jnp.float32)


def rotate(x, angles):
    """Returns x [B T N H] with pairs (i, i + h/2) of its first h dimensions turned by angles (sin, cos) [B T h/2]."""
    if angles is None:
        return x
    sin, cos = (jax.lax.expand_dims(a, (2,)) for a in angles)
    half = sin.shape[-1]
    *pair, rest = jnp.split(x, (half, 2 * half), axis=-1)
    a, b = (half.astype(jnp.float32) for half in pair)
    turned = (half.astype(x.dtype) for half in (a * cos - b * sin, b * cos + a * sin))
    return jnp.concatenate([*turned, rest], axis=-1)
