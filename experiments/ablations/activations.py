"""Which activation suits a small decoder at equal parameters: five of them, four rates, five seeds.

    lm sweep experiments/ablations/activations.py --together=20
    lm report runs/activations_sweep --html report.html

Gated ones have a third matrix and so two thirds of the feed-forward size, rounded to 168 from 170.7.
"""
from experiments.ablations import small
from lm.sweep import chain, grid

config = small.config
RATES = {'optimizer.peak': [1e-3, 3e-3, 1e-2, 3e-2]}


def sweep():
    return chain(grid({'model.activation': ['gelu', 'relu', 'relu2'], **RATES}, small.SEEDS),
                 grid({'model.activation': ['swiglu', 'geglu'], 'model.ff': [168], **RATES}, small.SEEDS))
