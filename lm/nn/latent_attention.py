"""Multi-head latent attention: keys and values of all heads come from one small latent a token, and it alone is cached.
"""
from dataclasses import dataclass, field
from functools import partial

import jax
import jax.numpy as jnp

from lm import config
from lm.nn import memory
from lm.nn.layers import INIT, Attention, project, write
from lm.nn.norms import Norm, RMSNorm
from lm.nn.positions import rotate
from lm.nn.weights import weight


@dataclass(frozen=True)
class LatentAttention(Attention):
    """Attention with keys and values made from a latent of `rank` numbers a token (DeepSeek-AI 2024, arXiv:2405.04434).

    query_rank: of the latent that queries are made from, 0 for none. rotary: the last so many of the H dimensions of
    queries and keys turn with the position; those of a key are the same in all heads. value_dim: of values, 0 for H.
    qk_norm: of both latents. bias: of what reads the stream ('qkv'), or of the output too ('all').
    """

    qk_norm: Norm = field(default_factory=partial(RMSNorm, 1e-6))
    rank: config.Size = 512
    query_rank: config.Count = 0
    rotary: config.Size = 64
    value_dim: config.Count = 0

    def __post_init__(self):
        super().__post_init__()
        if self.num_kv_heads != self.heads or self.qk_norm_over != 'head':
            raise config.Error('heads share latents, not keys, and each latent has one norm; '
                               "try kv_heads=0 qk_norm_over='head'.")
        if self.rotary % 2:
            raise config.Error(f'rotary={self.rotary} is odd and positions turn pairs; try rotary={self.rotary + 1}.')

    def turning(self, size):
        if self.rotary >= size or self.value_dim > size:
            raise config.Error(f'heads of head_dim={size} hold rotary={self.rotary} dimensions and others, and '
                               f'value_dim={self.value_dim} of no more; try head_dim={self.rotary + self.value_dim}.')
        return self.rotary

    def flops(self, width, length):
        size, heads = self.head_size(width), self.heads
        values, stream = self.value_dim or size, width + heads * size
        query = self.query_rank * stream if self.query_rank else width * heads * size
        products = (query + width * (self.rank + self.rotary) + self.rank * heads * (size - self.rotary + values)
                    + heads * values * width)
        return 2 * products + 2 * self.seen(length) * heads * (size + values)

    def cache(self, width, batch, slots, dtype):
        """Returns empty latents [B S rank] and turning keys [B S rotary] for `slots` tokens a row."""
        return tuple(jnp.zeros((batch, slots, size), dtype) for size in (self.rank, self.rotary))

    def _attend(self, scope, x, norm, context, *, execution, init):
        width, angles, dtype = x.shape[-1], context.angles, execution.dtype
        enter = memory.kept_late(partial(project, precision=execution.precision), execution.remat)
        heads = {'heads': self.heads, 'head_dim': self.head_size(width)}
        still, values = heads['head_dim'] - self.rotary, self.value_dim or heads['head_dim']
        down = [self._declare(scope, name, {'embed': width, axis: size}, dtype) for name, axis, size in (
            ('latent', 'rank', self.rank), ('key', 'rotary', self.rotary))]
        own = self._declare(scope, 'query_latent', {'embed': width, 'query_rank': self.query_rank}, dtype) \
            if self.query_rank else self._declare(scope, 'query', {'embed': width, **heads}, dtype)
        if context.memory is None:
            query, latent, turning = enter(x, norm, [own, *down])
        else:
            (query,), (latent, turning) = enter(x, norm, [own]), (
                context.memory if isinstance(context.memory, tuple) else enter(context.memory, None, down))
        turning = rotate(turning[:, :, None], angles)[:, :, 0]
        cache = context.cache if context.memory is None else (latent, turning)
        if context.cache is not None:
            cache = jax.tree.map(partial(write, index=context.index), cache, (latent, turning))
            if context.index is not None:
                latent, turning = cache

        def expand(x, name, axes):  # a latent stands for the stream: 'embed' shards its axis and counts its fan-in
            w = weight(scope, name, {'embed': x.shape[-1], **axes}, INIT, dtype)
            return enter(x, self.qk_norm.bind(scope, f'{name}_norm', x.shape[-1]), [(w, None)])[0]
        if self.query_rank:
            query = expand(query, 'query', heads)
        made = expand(latent, 'key_value', {**heads, 'head_dim': still + values})
        query = jnp.concatenate([query[..., :still], rotate(query[..., still:], angles)], -1)
        turning = jnp.broadcast_to(turning[:, :, None], (*made.shape[:3], self.rotary))
        key = jnp.concatenate([made[..., :still], turning.astype(made.dtype)], -1)
        mixed = self.mix(query, key, made[..., still:], self._spec(scope, context, execution.kernel))
        return self._leave(scope, mixed, x, init, execution), cache
