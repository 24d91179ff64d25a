"""How loss falls with size and data: decoders of four widths, each trained for four lengths, on characters.

    lm sweep experiments/scaling_tiny.py
    lm scaling runs/scaling_tiny_sweep --budget=1e13 --predict 'model.width=256 steps=3200' --html scaling.html

Hardware and time: two shared CPU cores, 12 minutes of training for all 16 runs. The learning rates were
not tuned, and there is one seed. Reached, November 2026: losses from 2.513 (7.3k parameters, 205k tokens) to 1.763
(402k, 1.64M tokens, 1.6 epochs).

    E 0.32 [0.00, 1.37]   A 4.5 [2.1, 29]   alpha 0.26 [0.08, 0.50]   B 8.3 [6.7, 144]   beta 0.13 [0.10, 0.44]

Runs lie 1.2% around the law. From the other 15 it foretold the largest at 1.780 [1.714, 1.853], which reached 1.763.
So small a sweep tells losses just outside it and little else: E is between nothing and 1.4, and for 1e13 FLOPs, 2.5
times the largest run, the best N is between 6.6k and 160k. With 100 steps in place of 1,600 the runs lie 3% around the
law: 7.3k parameters after 100 steps are at 2.89 and not yet on it.
"""
import dataclasses

from experiments import shakespeare_char
from lm import optim
from lm.models import Decoder, Layer
from lm.nn import Attention
from lm.sweep import grid, zipped


def config():
    base = shakespeare_char.config()
    return dataclasses.replace(
        base, model=Decoder(vocab=65, depth=2, width=32, layer=Layer(Attention(heads=2))),
        data=dataclasses.replace(base.data, batch=16),
        optimizer=optim.AdamW(peak=8e-3, schedule=optim.Cosine(warmup=20, end=0.1), b2=0.99, weight_decay=0.1),
        steps=400, cadence=dataclasses.replace(base.cadence, eval=0, save=0))


def sweep():
    return grid(zipped({'model.width': [16, 32, 64, 128], 'optimizer.peak': [1.2e-2, 8e-3, 5e-3, 3e-3]}),
                {'steps': [200, 400, 800, 1600]})
