"""Attention: one function, `attend`, over queries, keys and values, whatever the mask, by the kernel that fits."""
from lm.nn.attention.dispatch import attend
from lm.nn.attention.masking import AttentionSpec, Kernel, Zigzag, shard_sequence

__all__ = ['AttentionSpec', 'Kernel', 'Zigzag', 'attend', 'shard_sequence']
