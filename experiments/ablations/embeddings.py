"""Whether the output layer should be the embedding: tied or free, four rates, five seeds.

    lm sweep experiments/ablations/embeddings.py --together=20
    lm report runs/embeddings_sweep --html report.html
"""
from experiments.ablations import small
from lm.sweep import grid

config = small.config


def sweep():
    return grid({'model.tied': [True, False], 'optimizer.peak': [1e-3, 3e-3, 1e-2, 3e-2]}, small.SEEDS)
