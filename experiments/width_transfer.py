"""Whether the best learning rate moves with width: widths 64 to 512, with muP and without, over a grid of rates.

    lm sweep experiments/width_transfer.py --together=12
"""
import dataclasses

from experiments import shakespeare_char
from lm import data, metrics, optim
from lm.models.decoder import Base, Decoder
from lm.sweep import grid, zipped

BASE = Base(width=64, heads=4)


def config():
    chars = shakespeare_char.config()
    corpus = dataclasses.replace(chars.data, valid=data.Cut(shakespeare_char.TEXT, 0.9, 0.91), context=32, batch=8)
    return dataclasses.replace(
        chars, model=Decoder(vocab=65, depth=2, width=64, heads=4, base=BASE), data=corpus,
        optimizer=optim.AdamW(peak=2 ** -7, schedule=optim.Cosine(warmup=10), weight_decay=0.0),
        steps=100, eval_every=0, save_every=0, log_every=10)


def sweep():
    sizes = zipped({'model.width': [64, 128, 256, 512], 'model.heads': [4, 8, 16, 32]})
    rates = {'optimizer.peak': [2.0 ** -n for n in (10, 9, 8, 7, 6, 5)]}
    return grid(sizes, {'model.base': [BASE, Base()]}, rates, zipped(dict.fromkeys(metrics.SEEDS, range(2))))
