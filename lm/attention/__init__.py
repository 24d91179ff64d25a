"""Attention: one function, `attend`, over queries, keys and values, whatever the mask, by the kernel that fits."""
from lm.attention.choice import attend
from lm.attention.views import Kernel, View, Zigzag, spread

__all__ = ['Kernel', 'View', 'Zigzag', 'attend', 'spread']
