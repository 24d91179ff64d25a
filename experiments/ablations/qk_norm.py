"""Whether normalising queries and keys helps a small decoder, and at high rates: five rates, five seeds.

    lm sweep experiments/ablations/qk_norm.py --together=25
    lm report runs/qk_norm_sweep --html report.html
"""
from experiments.ablations import small
from lm.sweep import grid

config = small.config


def sweep():
    return grid({'model.qk_norm': [False, True], 'optimizer.peak': [1e-3, 3e-3, 1e-2, 3e-2, 0.1]}, small.SEEDS)
