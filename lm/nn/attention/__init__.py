"""Attention: one function, `attend`, over queries, keys and values, whatever the mask, by the kernel that fits."""
from lm.nn.attention.dispatch import attend
from lm.nn.attention.spec import Kernel, View, Zigzag, spread

__all__ = ['Kernel', 'View', 'Zigzag', 'attend', 'spread']
