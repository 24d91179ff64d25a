"""How loss falls with size and data: decoders of four widths, each trained for four lengths, on characters.

    lm sweep experiments/scaling_tiny.py
    lm scaling runs/scaling_tiny_sweep --budget=1e14 --predict 'model.width=256 steps=3200'
"""
import dataclasses

from experiments import shakespeare_char
from lm import optim
from lm.models.decoder import Decoder
from lm.sweep import grid, zipped


def config():
    base = shakespeare_char.config()
    return dataclasses.replace(
        base, model=Decoder(vocab=65, depth=2, heads=2, width=32), data=dataclasses.replace(base.data, batch=16),
        optimizer=optim.AdamW(peak=8e-3, schedule=optim.Cosine(warmup=20, end=0.1), b2=0.99, weight_decay=0.1),
        steps=400, eval_every=0, save_every=0)


def sweep():
    return grid(zipped({'model.width': [16, 32, 64, 128], 'optimizer.peak': [1.2e-2, 8e-3, 5e-3, 3e-3]}),
                {'steps': [200, 400, 800, 1600]})
