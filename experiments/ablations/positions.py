"""How a small decoder should know the order of its tokens, in rows of 64: six schemes, five rates, five seeds.

    lm sweep experiments/ablations/positions.py --together=15
    lm report runs/positions_sweep --html report.html

Hardware and time: two shared CPU cores, 150 runs in 19 CPU minutes, November 2026, jax 0.12. Validation loss after
307,200 tokens, five seeds each at the best rate, against rotary positions; p by Holm over five comparisons:

    T5's relative biases  0.03   2.031  -0.036 [-0.048, -0.024]  p 1e-3  better
    rotary                0.01   2.067
    ALiBi                 0.03   2.133  +0.066 [+0.051, +0.081]  p 5e-4  worse
    learned               0.01   2.293  +0.225 [+0.196, +0.255]  p 9e-5  worse
    none                  0.01   2.400  +0.333 [+0.322, +0.343]  p 5e-7  worse
    sinusoidal            0.03   2.607  +0.540 [+0.477, +0.603]  p 8e-5  worse

Every best rate lies inside its grid. At 0.01 and below rotary positions lead T5's biases, by 0.035 or more: up to that
rate the report would have had it the other way round, but refused, as the biases were best at the edge. Sinusoids of
size one stand beside embeddings that start at 0.02, which may be what holds them back.
"""
from experiments.ablations import small
from lm import nn
from lm.sweep import grid

config = small.config


def sweep(causal=True):
    in_attention = [{'model.layer.attention.position': position}
                    for position in (nn.Rope(), nn.Alibi(), nn.Relative(causal=causal), nn.NoPE())]
    added = [{'model.layer.attention.position': nn.NoPE(), 'model.embedding.position': position}
             for position in (nn.Learned(64), nn.Sinusoidal())]
    return grid(in_attention + added, {'optimizer.peak': [1e-3, 3e-3, 1e-2, 3e-2, 0.1]}, small.SEEDS)
