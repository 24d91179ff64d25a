"""Splash attention on TPU: blocks of scores in fast memory, those that the mask empties left out (Pallas)."""
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from lm.nn.attention import masking

LANES = 128
BLOCKS = (512, 384, 256, 128)
SAVED = 'attended'


def unsupported(query, key, spec, platform):
    """Returns why splash attention cannot be used, or None."""
    if platform != 'tpu':
        return f'it runs on TPU, and this is {platform}'
    if spec.prefix is not None:
        return 'it does not support a prefix that is seen from before it'
    if spec.bias is not None:
        return 'it does not support a bias on scores, which Alibi and Relative positions add'
    if spec.sink is not None:
        return 'it does not support a sink'
    own = query.shape[1] // spec.zigzag.shards if spec.zigzag else LANES
    if own % LANES:
        return f'the {own} tokens of a device are not a multiple of {LANES}'
    return None


def attend(query, key, value, spec, interpret=False):
    """Returns attention [B T N H] by the Pallas kernel, or by its interpreter, which any platform runs.

    Where the length is split, each device gathers all keys and values and keeps its own queries.
    """
    return masking.over_mesh(partial(_local, interpret=interpret), query, key, value, spec)


def _local(query, key, value, spec, interpret):
    from jax.experimental.pallas.ops.tpu import splash_attention
    length, heads = query.shape[1:3]
    segments, zigzag = spec.segments, spec.zigzag
    if zigzag:
        key, value = (_whole(x, zigzag) for x in (key, value))
        segments = segments and (segments[0], _whole(segments[1], zigzag))
    elif length % LANES and segments is None and not spec.causal:
        segments = (jnp.zeros(query.shape[:2], jnp.int32),) * 2
    query, key, value = (_pad(x, 0) for x in (spec.scaled(query), key, value))
    segments = segments and splash_attention.SegmentIds(*(_pad(x, -1) for x in segments))
    kernel = _kernel(key.shape[1], heads, replace(spec, segments=None), interpret)
    if zigzag:
        kernel = _own(kernel, jax.lax.axis_index('context'), zigzag.shards)
    heads_first = (jnp.moveaxis(x, 2, 1) for x in (query, key, value))
    mixed = _materialize_residuals(kernel, *heads_first, segments)
    return jnp.moveaxis(mixed, 1, 2)[:, :length]


@jax.custom_vjp
def _materialize_residuals(kernel, *arrays):
    """Returns a kernel's output for each row, its residuals forced early by a barrier.

    XLA otherwise keeps all 128 lanes of the softmax statistics [B N T 128] alive through the MLP's backward pass, where
    one is read.
    """
    return jax.vmap(kernel)(*arrays)


def _materialize_residuals_forward(kernel, *arrays):
    def attend(*arrays):
        return jax.vmap(kernel)(*arrays)
    mixed, pull = jax.vjp(attend, *arrays)
    return jax.lax.optimization_barrier((mixed, pull))


_materialize_residuals.defvjp(_materialize_residuals_forward, lambda pull, g: (None, *pull(g)))


def _whole(x, zigzag):
    """Returns x [B t ...] all-gathered over the sequence, in the order of the text."""
    return zigzag.gather(jax.lax.all_gather(x, 'context', axis=1, tiled=True))


def _pad(x, value):
    """Returns x [B T ...] with `value` behind it up to whole lanes."""
    return jnp.pad(x, [(0, 0), (0, -x.shape[1] % LANES)] + [(0, 0)] * (x.ndim - 2), constant_values=value)


def _kernel(length, heads, spec, interpret):
    """Returns the splash kernel for `heads` heads of `length` keys under an AttentionSpec."""
    from jax.experimental.pallas.ops.tpu import splash_attention
    shards = spec.zigzag.shards if spec.zigzag else 1
    window = spec.window or length
    mask = splash_attention.LocalMask((length, length), (window - 1, 0 if spec.causal else window - 1), 0)
    if not spec.window:
        mask = (splash_attention.CausalMask if spec.causal else splash_attention.FullMask)((length, length))
    if spec.zigzag and isinstance(mask, splash_attention.CausalMask | splash_attention.LocalMask):
        mask.q_sequence = spec.zigzag.order(length).astype(np.int32)
    rows, columns = _block(length // shards), _block(length)
    sizes = splash_attention.BlockSizes(
        block_q=rows, block_kv=columns, block_kv_compute=columns, block_q_dkv=rows, block_kv_dkv=columns,
        block_kv_dkv_compute=columns, block_q_dq=rows, block_kv_dq=columns)
    return splash_attention.make_splash_mha(
        splash_attention.MultiHeadMask([mask] * heads), block_sizes=sizes, head_shards=1, q_seq_shards=shards,
        attn_logits_soft_cap=spec.softcap or None, residual_checkpoint_name=SAVED, interpret=interpret)


def _block(length):
    return next(block for block in BLOCKS if length % block == 0)


def _own(kernel, rank, shards):
    """Returns the kernel for the queries of device `rank`, whose part of the mask's blocks it keeps."""
    def part(x, axis):
        size = x.shape[axis] // shards
        return jax.lax.dynamic_slice_in_dim(x, rank * size, size, axis)

    def cut(info):
        return info and info._replace(**{name: part(x, 0 if name == 'q_sequence' else 1)
                                         for name, x in info._asdict().items()
                                         if name in ('data_next', 'block_mask', 'q_sequence') and x is not None})
    return type(kernel)(
        *(cut(info) for info in (kernel.fwd_mask_info, kernel.dq_mask_info, kernel.dkv_mask_info)), **kernel.kwargs)
