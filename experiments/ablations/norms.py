"""Where the norms of a small decoder should stand: before each part, after it, or both; four rates, five seeds.

    lm sweep experiments/ablations/norms.py --together=25
    lm report runs/norms_sweep --html report.html
"""
from experiments.ablations import small
from lm.sweep import grid

config = small.config


def sweep():
    return grid({'model.norm_place': ['pre', 'post', 'both'], 'optimizer.peak': [1e-3, 3e-3, 1e-2, 3e-2]}, small.SEEDS)
