"""How much dropout helps when data is scarce: four rates of it, five epochs of a twentieth of the text, five seeds.

    lm sweep experiments/ablations/dropout.py --together=20
    lm report runs/dropout_sweep --html report.html

Hardware and time: two shared CPU cores, 20 runs in 3 CPU minutes, November 2026, jax 0.12. Validation loss after
307,200 tokens, five seeds each, against none; p by Holm over three comparisons:

    none   2.330
    0.05   2.337  +0.007 [-0.017, +0.032]  p 0.45   undecided, 73 more seeds
    0.1    2.359  +0.029 [+0.012, +0.046]  p 0.017  worse
    0.2    2.382  +0.052 [+0.031, +0.073]  p 0.007  worse
"""
import dataclasses

from experiments import shakespeare_char
from experiments.ablations import small
from lm import data
from lm.sweep import grid


def config():
    settings = small.config()
    part = data.Cut(shakespeare_char.TEXT, 0.0, 0.05)
    scarce = dataclasses.replace(settings.data, train=part, tokenizer=data.Bytes())  # that part lacks some letters
    return dataclasses.replace(settings, data=scarce, model=dataclasses.replace(settings.model, vocab=258))


def sweep():
    return grid({'model.dropout': [0.0, 0.05, 0.1, 0.2]}, small.SEEDS)
