"""Masked diffusion of Shakespeare's characters beside the causal model: equal layers, steps and tokens.

    lm sweep experiments/diffusion_shakespeare.py

The text is that of shakespeare_char.py. 0.80 million parameters, 8.2M tokens, eight epochs, one seed each: a bound of
2.804 bits a character of the text held out, where the causal model has 2.183. Both still fell, by 0.13 and 0.04 bits in
the last 1,000 steps.
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
