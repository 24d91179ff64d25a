"""How much dropout helps when data is scarce: four rates of it, five epochs of a twentieth of the text, five seeds.

    lm sweep experiments/ablations/dropout.py --together=20
    lm report runs/dropout_sweep --html report.html

A hundredth of the text, 28 epochs: behind the first line, data.train.stop=0.01 --workdir=runs/dropout_scarcer_sweep

Hardware and time: two shared CPU cores, 40 runs in 6 CPU minutes, November 2026, jax 0.12. Validation loss after
307,200 tokens, five seeds each, against none; p by Holm over three comparisons:

            a twentieth of the text                             a hundredth
    none    2.330                                               2.759
    0.05    2.337  +0.007 [-0.017, +0.032]  p 0.45  undecided   2.693  -0.066 [-0.091, -0.041]  p 2e-3  better
    0.1     2.359  +0.029 [+0.012, +0.046]  p 0.02  worse       2.652  -0.107 [-0.125, -0.089]  p 3e-4  better
    0.2     2.382  +0.052 [+0.031, +0.073]  p 7e-3  worse       2.627  -0.132 [-0.159, -0.104]  p 4e-4  better

Over five epochs dropout only slows; over 28 it helps, the more of it the better, up to the most that was tried. The
learning rate was the same for all.
"""
import dataclasses

from experiments import shakespeare_char
from experiments.ablations import small
from lm import data
from lm.sweep import grid, zipped


def config():
    settings = small.config()
    part = data.Cut(shakespeare_char.TEXT, 0.0, 0.05)
    scarce = dataclasses.replace(settings.data, train=part, tokenizer=data.Bytes())  # that part lacks some letters
    return dataclasses.replace(settings, data=scarce, model=dataclasses.replace(settings.model, vocab=258))


def sweep():
    rates = [0.0, 0.05, 0.1, 0.2]
    return grid(zipped({'model.layer.dropout': rates, 'model.embedding.dropout': rates}), small.SEEDS)
