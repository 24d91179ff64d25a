"""Whether normalising queries and keys helps a small decoder, and at high rates: five rates, five seeds.

    lm sweep experiments/ablations/qk_norm.py --together=25
    lm report runs/qk_norm_sweep --html report.html

Hardware and time: two shared CPU cores, 50 runs in 6 CPU minutes, November 2026, jax 0.12. Validation loss after
307,200 tokens, the mean of five seeds at each rate:

    rate       0.001   0.003   0.01    0.03    0.1
    without    2.298   2.139   2.067   2.094   2.617
    QK-norm    2.254   2.117   2.053   2.059   2.166

    QK-norm at its best rate, 0.01:  -0.014 [-0.026, -0.002]  p 0.031  better

It helps little at the best rate, and most above it: a rate three times too high costs 0.005 with it, 0.027 without.
"""
from experiments.ablations import small
from lm import nn
from lm.sweep import grid

config = small.config


def sweep():
    return grid({'model.layer.attention.qk_norm': [nn.NoNorm(), nn.RMSNorm()],
                 'optimizer.peak': [1e-3, 3e-3, 1e-2, 3e-2, 0.1]}, small.SEEDS)
