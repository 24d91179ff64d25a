"""Sweeps: many trials of one experiment. Here, for `sweep()` in experiment files, are what combine their overrides."""
from lm.sweep.combinators import chain, grid, sample, zipped

__all__ = ['chain', 'grid', 'sample', 'zipped']
