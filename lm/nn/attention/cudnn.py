"""cuDNN's flash attention on NVIDIA GPUs, through JAX."""
from functools import partial

import jax

HINT = 'try model.execution.dtype=bfloat16'


def unsupported(query, key, view, platform):
    """Returns why cuDNN cannot be used, or None; what JAX itself checks is left to JAX."""
    if platform != 'gpu':
        return f'it runs on NVIDIA GPUs, and this is {platform}'
    if query.dtype not in ('bfloat16', 'float16'):
        return f'it needs bfloat16, and this is {query.dtype}; {HINT}'
    if view.softcap:
        return f'it does not support softcap={view.softcap}'
    if view.bias is not None:
        return 'a bias of Alibi or Relative positions would be stored for every head and pair'
    if view.zigzag:
        return 'it does not support a sequence that the mesh shards'
    if view.window and not view.causal:
        return 'its windows are causal'
    if query.shape[1] % 2:
        return f'it needs an even length, and this is {query.shape[1]}'
    try:
        jax.eval_shape(partial(attend, view=view), query, key, key)
    except (RuntimeError, NotImplementedError, ValueError) as error:
        return str(error)
    return None


def attend(query, key, value, view):
    """Returns attention [B T N H]; segments become a mask [B 1 T S] that every head shares."""
    mask = None
    if view.segments is not None:
        queries, keys = view.segments
        mask = queries[:, None, :, None] == keys[:, None, None, :]
    return jax.nn.dot_product_attention(
        query, key, value, mask=mask, scale=view.scale, is_causal=view.causal,
        local_window_size=(view.window - 1, 0) if view.window else None, implementation='cudnn')
