"""Masked diffusion of Shakespeare's characters beside the causal model: equal layers, steps and tokens.

    lm sweep experiments/diffusion_shakespeare.py

The text is that of shakespeare_char.py. Not trained to its end yet, so it has no number.
"""
import lm
from experiments import shakespeare_fast
from lm import data, optim, train


def config():
    return lm.config.override(shakespeare_fast.config(), {
        'model.vocab': 66, 'model.layer.attention.causal': False, 'data.batch': 32,
        'data.tokenizer': data.Controls(data.Chars(), ('<mask>',)), 'objective': train.MaskedDiffusion(), 'steps': 4000,
        'optimizer': optim.Muon(peak=1e-2, schedule=optim.Linear(warmup=40, end=0.0), weight_decay=0.1),
        'cadence': train.Cadence(log=100, eval=1000, save=1000)})


def sweep():
    return [{}, {'model.layer.attention.causal': True, 'objective': train.NextToken()}]
