"""How much dropout helps when data is scarce: four rates of it, five epochs of a twentieth of the text, five seeds.

    lm sweep experiments/ablations/dropout.py --together=20
    lm report runs/dropout_sweep --html report.html
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
