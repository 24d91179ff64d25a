"""How a small decoder should know the order of its tokens, in rows of 64: six schemes, five rates, five seeds.

    lm sweep experiments/ablations/positions.py --together=15
    lm report runs/positions_sweep --html report.html
"""
from experiments.ablations import small
from lm import positions
from lm.sweep import grid

config = small.config


def sweep():
    return grid({'model.position': [positions.Rope(), positions.Learned(64), positions.Sinusoidal(), positions.Alibi(),
                                    positions.Relative(), positions.NoPE()],
                 'optimizer.peak': [1e-3, 3e-3, 1e-2, 3e-2, 0.1]}, small.SEEDS)
