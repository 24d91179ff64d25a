"""Sweeps: many trials of one experiment. Exported are the combinators for `sweep()` in experiment files."""
from lm.sweep.combinators import chain, grid, sample, zipped

__all__ = ['chain', 'grid', 'sample', 'zipped']
