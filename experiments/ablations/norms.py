"""In which order a small decoder has its norms: four orders, four rates, five seeds.

    lm sweep experiments/ablations/norms.py --together=20
    lm report runs/norms_sweep --html report.html

Hardware and time: two shared CPU cores, 80 runs in 10 CPU minutes, November 2026, jax 0.12. Validation loss after
307,200 tokens, five seeds each at the best rate, against PreNorm; p by Holm over three comparisons:

    PreNorm       x + f(norm(x))         0.01    2.067
    PostNorm      norm(x + f(x))         0.01    2.107  +0.039 [+0.011, +0.067]  p 0.018  worse
    SandwichNorm  x + norm(f(norm(x)))   0.01    2.215  +0.148 [+0.119, +0.177]  p 3e-4   worse
    OutputNorm    x + norm(f(x))         0.003   2.293  +0.226 [+0.187, +0.271]  p 3e-4   worse

Every best rate lies inside its grid. PostNorm, of the original Transformer and BERT, suffers most from a high rate:
at 0.03 it reaches 2.445, with a deviation of 0.386 over seeds, where PreNorm reaches 2.094. Of OutputNorm 0.03 is as
good as 0.003 (2.295), and 0.01 worse than both (2.381). A norm after a sublayer undoes that its output weights start
small; scales that start below one were not tried.
"""
from experiments.ablations import small
from lm import models
from lm.sweep import grid

config = small.config


def sweep():
    residuals = [models.PreNorm(), models.PostNorm(), models.OutputNorm(), models.SandwichNorm()]
    return grid({'model.layer.residual': residuals, 'optimizer.peak': [1e-3, 3e-3, 1e-2, 3e-2]}, small.SEEDS)
