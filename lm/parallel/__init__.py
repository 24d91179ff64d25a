"""Several devices and processes as one: meshes, reductions, pipelining, heartbeats."""
from lm.parallel.pipeline import Pipeline

__all__ = ['Pipeline']
