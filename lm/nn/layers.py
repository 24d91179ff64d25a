"""The sublayers of a transformer layer: attention and MLP."""
import abc
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp

from lm import config
from lm.config.divisors import divisor_below
from lm.nn import attention, memory
from lm.nn.activations import Activation, Gelu
from lm.nn.norms import NoNorm, Norm
from lm.nn.positions import AbsolutePosition, Position, Relative, Rope, rotate
from lm.nn.weights import Leaf, Scope, einsum, fill, normal, weight
from lm.parallel import reductions, sharding

INIT = normal(0.02)  # of projections that read the residual stream


def project(x, norm, weights, *, precision):
    """Returns [norm(x) times w, plus bias], of x [B T D], for each (Weight [D ...], bias or None) of `weights`.

    norm: a Normaliser, or None. Each result [B T ...] is sharded as its weight is.
    """
    x = reductions.gather_stream(x if norm is None else norm(x))

    def multiply(w, bias):
        y = einsum('BTD,DNH->BTNH' if len(w.names) == 3 else 'BTD,DF->BTF', x, w, precision)
        return sharding.constrain(y if bias is None else y + bias, 'batch', 'length', *w.names[1:])
    return [multiply(*pair) for pair in weights]


@dataclass(frozen=True)
class Attention:
    """Multi-head attention; 0 stands for kv_heads=heads and head_dim=width/heads.

    causal: a query sees no later key. window: it sees itself and window - 1 keys before it (and after, where not
    causal); 0 for all. scale: of the scores, None for 1/sqrt(H). softcap: scores become c * tanh(scores / c). qk_norm:
    of queries and keys, over each head or over all heads at once. bias: of queries, keys and values ('qkv'), or of the
    output too ('all'). sink: each head has a trained score beside those of its keys, which takes its share of the
    softmax and gives nothing (Xiao et al. 2023, arXiv:2309.17453).
    """

    heads: config.Size = 6
    kv_heads: config.Count = 0
    head_dim: config.Count = 0
    causal: bool = True
    window: config.Count = 0
    position: Position = field(default_factory=Rope)
    scale: config.Positive | None = None
    softcap: config.NonNegative = 0.0
    qk_norm: Norm = field(default_factory=NoNorm)
    qk_norm_over: Literal['head', 'heads'] = 'head'
    bias: Literal['none', 'qkv', 'all'] = 'none'
    sink: bool = False

    def __post_init__(self):
        if isinstance(self.position, AbsolutePosition):
            raise config.Error(f'{type(self.position).__name__} is added to embeddings, not to attention; '
                               'try model.embedding.position, and position=NoPE here.')
        config.check(self)
        if isinstance(self.position, Relative) and self.position.causal != self.causal:
            raise config.Error(f'position.causal={self.position.causal} buckets other keys than causal={self.causal} '
                               f'attention sees; try position=Relative(causal={self.causal}).')
        if self.heads % self.num_kv_heads:
            raise config.Error(f'kv_heads={self.kv_heads} does not divide heads={self.heads}; '
                               f'try kv_heads={divisor_below(self.heads, self.kv_heads)}.')

    @property
    def num_kv_heads(self):
        """K, the number of key and value heads."""
        return self.kv_heads or self.heads

    def head_size(self, width):
        """Returns H; raises config.Error where the heads do not divide the width or the position cannot use H."""
        if not self.head_dim and width % self.heads:
            near = max(1, round(width / self.heads)) * self.heads
            raise config.Error(f'width={width} is not a multiple of heads={self.heads}; try width={near}.')
        size = self.head_dim or width // self.heads
        self.position.check(self.turning(size))
        return size

    def turning(self, size):
        """Returns how many dimensions of heads of H = `size` turn with the position."""
        return size

    def seen(self, length):
        """Returns how many keys a query of a row of `length` sees on average, half of them where it is causal.

        Whole rows are counted as by Chowdhery et al. 2022, appendix B.
        """
        window = min(self.window or length, length)
        return (1 if self.causal else 2) * window * (length - window / 2) / length

    def flops(self, width, length):
        """Returns the FLOPs of one token's forward pass in a row of `length`: projections, and scores with their sum.
        """
        size = self.head_size(width)
        return 4 * width * size * (self.heads + self.num_kv_heads) + 4 * self.seen(length) * self.heads * size

    def cache(self, width, batch, slots, dtype):
        """Returns empty keys and values, each [B S K H], for `slots` tokens a row."""
        return (jnp.zeros((batch, slots, self.num_kv_heads, self.head_size(width)), dtype),) * 2

    def __call__(self, x, norm, context, *, name, execution, init):
        """Returns (what attention adds to x [B T D], the cache with x's keys and values, or those of the memory).

        norm: a Normaliser applied to x first, or None. Where the context has a memory, keys and values are its own.
        name: of the scope that holds the weights. init: initializer of the output projection.
        """
        attend = partial(self._attend, execution=execution, init=init)
        return Scope(attend, name=name)(x, norm, context)

    def _attend(self, scope, x, norm, context, *, execution, init):
        heads = {'heads': self.heads, 'head_dim': self.head_size(x.shape[-1])}
        kv_heads = {'kv_heads': self.num_kv_heads, 'head_dim': heads['head_dim']}
        enter = memory.kept_late(partial(project, precision=execution.precision), execution.remat)
        weights = [self._declare(scope, name, {'embed': x.shape[-1], **axes}, execution.dtype)
                   for name, axes in (('query', heads), ('key', kv_heads), ('value', kv_heads))]
        if context.memory is None:
            query, key, value = enter(x, norm, weights)
        else:
            (query,), (key, value) = enter(x, norm, weights[:1]), (
                context.memory if isinstance(context.memory, tuple) else enter(context.memory, None, weights[1:]))
        cache = context.cache if context.memory is None else (key, value)
        query, key = self._norm(scope, 'query_norm', query), self._norm(scope, 'key_norm', key)
        query, key = rotate(query, context.angles), rotate(key, context.angles)
        if context.cache is not None:
            cache = jax.tree.map(partial(write, index=context.index), cache, (key, value))
            if context.index is not None:
                key, value = cache
        mixed = self.mix(query, key, value, self._spec(scope, context, execution.kernel))
        return self._leave(scope, mixed, x, init, execution), cache

    def _leave(self, scope, mixed, x, init, execution):
        """Returns the output projection of values [B T N H], as wide as x [B T D]."""
        axes = {'heads': self.heads, 'head_dim': mixed.shape[-1], 'embed': x.shape[-1]}
        out = weight(scope, 'out', axes, init, execution.dtype)
        y = reductions.scatter_stream(einsum('BTNH,NHD->BTD', mixed, out, execution.precision))
        if self.bias == 'all':
            y = y + weight(scope, 'out_bias', {'bias': x.shape[-1]}, fill(0.0), execution.dtype).value
        return y

    def mix(self, query, key, value, spec):
        """Returns the values [B T N H] that queries [B T N H] gather from keys and values [B S K H]."""
        return attention.attend(query, key, value, spec)

    def _declare(self, scope, name, axes, dtype):
        """Returns (Weight, bias or None)."""
        w = weight(scope, name, axes, INIT, dtype)
        if self.bias == 'none':
            return w, None
        return w, weight(scope, f'{name}_bias', dict(list(axes.items())[1:]), fill(0.0), dtype).value

    def _norm(self, scope, name, x):
        if self.qk_norm_over == 'head':
            return self.qk_norm(scope, name, x)
        return self.qk_norm(scope, name, x.reshape(*x.shape[:2], -1)).reshape(x.shape)

    def _spec(self, scope, context, kernel):
        sink = weight(scope, 'sink', {'heads': self.heads}, fill(0.0)).value if self.sink else None
        others = context.segments if context.memory is None else context.memory_segments
        queries = context.segments
        if queries is None and others is not None:
            queries = jnp.ones((len(others), context.positions.shape[1]), others.dtype)
        return attention.AttentionSpec(
            causal=self.causal, window=self.window, softcap=self.softcap, scale=self.scale, index=context.index,
            segments=None if others is None else (queries, others),
            prefix=context.prefix if context.memory is None else None,
            bias=None if context.table is None else (context.table, self.position.score),
            sink=sink, kernel=kernel, zigzag=context.zigzag)


def write(slots, new, index):
    """Returns slots [B S ...] of a cache with new [B T ...] written at index [B T], or from slot 0 on."""
    if index is None:
        return jax.lax.dynamic_update_slice(slots, new.astype(slots.dtype), (0,) * slots.ndim)
    return slots.at[jnp.arange(slots.shape[0])[:, None], index].set(new.astype(slots.dtype))


class FeedForward(abc.ABC):
    """Base of the sublayers beside attention, which see each token alone."""

    @abc.abstractmethod
    def flops(self, width):
        """Returns the FLOPs of one token's forward pass."""

    @abc.abstractmethod
    def __call__(self, x, norm, context, *, execution, init):
        """Returns (what it adds to x [B T D], {name: measurement}); a Normaliser `norm` comes before, if any.

        A measurement 'loss' is added to that of the model. Measurements are means over tokens by context.token_weights.
        init: initializer of the matrix that writes the output.
        """

    def post_update(self, params, metrics):
        """Returns (params, metrics) after a step: of all layers [L ...], for what is learned without a gradient."""
        return params, metrics


@dataclass(frozen=True)
class MLP(FeedForward):
    """A feed-forward sublayer of `ff` hidden units (0: 4 * width), gated or not; SwiGLU is MLP(ff, Silu(), True)."""

    ff: config.Count = 0
    activation: Activation = field(default_factory=Gelu)
    gated: bool = False
    bias: bool = False

    def __post_init__(self):
        config.check(self)

    def hidden(self, width):
        """Returns F, the number of hidden units."""
        return self.ff or 4 * width

    def flops(self, width):
        return 2 * (2 + self.gated) * width * self.hidden(width)

    def __call__(self, x, norm, context, *, execution, init):
        feed = Scope(partial(self._feed, execution=execution, init=init), name='mlp')
        return feed(x, norm), {}

    def _feed(self, scope, x, norm, *, execution, init):
        width, ff = x.shape[-1], self.hidden(x.shape[-1])

        def declare(name, axes, init):
            w, size = weight(scope, name, axes, init, execution.dtype), list(axes.values())[-1]
            if not self.bias:
                return w, None
            return w, weight(scope, f'{name}_bias', {'bias': size}, fill(0.0), execution.dtype).value
        ins = [declare(name, {'embed': width, 'ff': ff}, INIT) for name in ('up', 'gate')[:1 + self.gated]]
        down, shift = declare('down', {'ff': ff, 'embed': width}, init)
        arrays = not any(isinstance(w.value, Leaf) for w, _ in (*ins, (down, shift)))  # others cannot be cut
        cut = arrays and execution.remat in memory.FULL_REMAT
        chunks = memory.mlp_chunks(ff, width, memory.tensor_shards(ff)) if cut else 1
        if chunks == 1:
            hidden = memory.kept_late(partial(project, precision=execution.precision), execution.remat)(x, norm, ins)
            hidden = memory.keep_inputs(self.activate, execution.remat)(*hidden)
            y = reductions.scatter_stream(einsum('BTF,FD->BTD', hidden, down, execution.precision))
        else:
            x = reductions.gather_stream(x if norm is None else norm(x))
            y = memory.chunked(self.activate, execution.precision, chunks, x,
                               ([*(w.value for w, _ in ins), down.value.T], [bias for _, bias in ins]))
        return y if shift is None else y + shift

    def activate(self, up, gate=None):
        """Returns the hidden units [... F] of what up and, if gated, gate give."""
        return self.activation(up) if gate is None else self.activation.gate(gate, up)
