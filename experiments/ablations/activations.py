"""Which activation suits a small decoder at equal parameters: five of them, four rates, five seeds.

    lm sweep experiments/ablations/activations.py --together=20
    lm report runs/activations_sweep --html report.html

Gated ones have a third matrix and so two thirds of the feed-forward size, rounded to 168 from 170.7.

Hardware and time: two shared CPU cores, 100 runs in 12 CPU minutes, November 2026, jax 0.12. Validation loss after
307,200 tokens, five seeds each at the best rate, against GELU; p by Holm over four comparisons:

    ReLU squared  0.01    2.043  -0.025 [-0.036, -0.013]  p 0.012  better
    ReLU          0.01    2.049  -0.019 [-0.024, -0.014]  p 0.002  better
    GELU          0.01    2.067
    GEGLU         0.003   2.088  +0.021 [-0.001, +0.043]  p 0.059  undecided, 7 more seeds
    SwiGLU        0.003   2.100  +0.033 [+0.008, +0.059]  p 0.045  worse

Every best rate lies inside its grid, but the grid is coarse for the gates, which lose 0.09 and more to either side.
ReLU suffers least from a wrong rate. At equal FLOPs SwiGLU is undecided too.
"""
from experiments.ablations import small
from lm import nn
from lm.sweep import grid

config = small.config
RATES = {'optimizer.peak': [1e-3, 3e-3, 1e-2, 3e-2]}


def sweep():
    plain = [nn.MLP(activation=activation) for activation in (nn.Gelu(), nn.Relu(), nn.Relu2())]
    gated = [nn.MLP(168, activation, gated=True) for activation in (nn.Silu(), nn.Gelu())]
    return grid({'model.layer.mlp': plain + gated, **RATES}, small.SEEDS)
