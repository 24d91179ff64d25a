"""Whether the output layer should be the embedding: tied or free, four rates, five seeds.

    lm sweep experiments/ablations/embeddings.py --together=20
    lm report runs/embeddings_sweep --html report.html

Hardware and time: two shared CPU cores, 40 runs in 4 CPU minutes, November 2026, jax 0.12. Validation loss after
307,200 tokens, five seeds each at the best rate:

    tied   0.01   2.067
    free   0.01   2.107  +0.040 [+0.028, +0.051]  p 7e-4  worse

Tied needs 0.79 of the tokens for the same loss, and has 4,160 parameters fewer.
"""
from experiments.ablations import small
from lm.sweep import grid

config = small.config


def sweep():
    return grid({'model.head.tied': [True, False], 'optimizer.peak': [1e-3, 3e-3, 1e-2, 3e-2]}, small.SEEDS)
