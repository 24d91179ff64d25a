"""cuDNN's flash attention on NVIDIA GPUs, through JAX."""
from functools import partial

import jax

HINT = 'try model.execution.dtype=bfloat16'


def unsupported(query, key, spec, platform):
    """Returns why cuDNN cannot be used, or None; what JAX itself checks is left to JAX."""
    if platform != 'gpu':
        return f'it runs on NVIDIA GPUs, and this is {platform}'
    if query.dtype not in ('bfloat16', 'float16'):
        return f'it needs bfloat16, and this is {query.dtype}; {HINT}'
    if spec.softcap:
        return f'it does not support softcap={spec.softcap}'
    if spec.prefix is not None:
        return 'it does not support a prefix that is seen from before it'
    if spec.bias is not None:
        return 'a bias of Alibi or Relative positions would be stored for every head and pair'
    if spec.sink is not None:
        return 'it does not support a sink'
    if spec.zigzag:
        return 'it does not support a sequence that the mesh shards'
    if spec.window and not spec.causal:
        return 'its windows are causal'
    if query.shape[1] % 2:
        return f'it needs an even length, and this is {query.shape[1]}'
    try:
        jax.eval_shape(partial(attend, spec=spec), query, key, key)
    except (RuntimeError, NotImplementedError, ValueError) as error:
        return str(error)
    return None


def attend(query, key, value, spec):
    """Returns attention [B T N H]; segments become a mask [B 1 T S] that every head shares."""
    mask = None
    if spec.segments is not None:
        queries, keys = spec.segments
        mask = queries[:, None, :, None] == keys[:, None, None, :]
    return jax.nn.dot_product_attention(
        query, key, value, mask=mask, scale=spec.scale, is_causal=spec.causal,
        local_window_size=(spec.window - 1, 0) if spec.window else None, implementation='cudnn')
