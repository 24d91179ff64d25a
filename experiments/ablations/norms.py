"""Where the norms of a small decoder should stand: before each part, after it, or both; four rates, five seeds.

    lm sweep experiments/ablations/norms.py --together=25
    lm report runs/norms_sweep --html report.html

Hardware and time: two shared CPU cores, 60 runs in 7 CPU minutes, November 2026, jax 0.12. Validation loss after
307,200 tokens, five seeds each at the best rate, against norms before each part; p by Holm over two comparisons:

    before   0.01    2.067
    both     0.01    2.215  +0.148 [+0.119, +0.177]  p 2e-4  worse
    after    0.003   2.293  +0.226 [+0.187, +0.264]  p 2e-4  worse

Every best rate lies inside its grid; after each part, 0.03 is as good as 0.003 (2.295), and 0.01 worse than both
(2.381). A norm after a part undoes that its output weights start small; scales that start below one were not tried.
"""
from experiments.ablations import small
from lm import models
from lm.sweep import grid

config = small.config


def sweep():
    residuals = [models.PreNorm(), models.PostNorm(), models.OutputNorm(), models.SandwichNorm()]
    return grid({'model.layer.residual': residuals, 'optimizer.peak': [1e-3, 3e-3, 1e-2, 3e-2]}, small.SEEDS)
