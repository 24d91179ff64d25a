"""How much dropout helps when data is scarce: four rates of it on a twentieth of the text, ten epochs, five seeds.

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
    scarce = dataclasses.replace(settings.data, train=data.Cut(shakespeare_char.TEXT, 0.0, 0.05))
    return dataclasses.replace(settings, data=scarce)


def sweep():
    return grid({'model.dropout': [0.0, 0.05, 0.1, 0.2]}, small.SEEDS)
