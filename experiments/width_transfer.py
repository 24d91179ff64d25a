"""Whether the best learning rate moves with width: widths 64 to 512, with muP and without, over a grid of rates.

    lm sweep experiments/width_transfer.py --together=12
    lm report runs/width_transfer_sweep

One trial alone is `lm train experiments/width_transfer.py`; `lm coord-check experiments/width_transfer.py` draws what
muP keeps the same. The head size is 16 at every width. The text is that of shakespeare_char.py.
Hardware and time: two shared CPU cores, 84 of the 96 trials in some 14 CPU minutes. Reached, the best rate of the grid
and mean validation loss there; in brackets the rate at the vertex of the parabola through it and its neighbours:

    width    64                        128                       256                       512
    muP      2**-8 2.547 (2**-7.7)     2**-7 2.497 (2**-7.5)     2**-7 2.452 (2**-7.3)     2**-7 2.457 (2**-7.5)
    without  2**-8 2.547 (2**-7.7)     2**-8 2.413 (2**-8.3)     2**-9 2.418 (2**-9.3)     2**-9 2.406 (2**-9.5)

Two seeds each; at 512 without muP only one, at 2**-10 to 2**-8. From width 64 to 512 the best rate moves by 0.2 of a
factor of 2 with muP (one step of the grid), by 1.7 without. Each at its own best rate, the standard parametrisation has
the lower loss past width 64 in these 100 steps.
"""
import dataclasses

from experiments import shakespeare_char
from lm import data, optim, records
from lm.models import Decoder, Layer, MupBase
from lm.nn import Attention
from lm.sweep import grid, zipped

BASE = MupBase(width=64, heads=4)


def config():
    chars = shakespeare_char.config()
    corpus = dataclasses.replace(chars.data, valid=data.Cut(shakespeare_char.TEXT, 0.9, 0.91), context=32, batch=8)
    return dataclasses.replace(
        chars, model=Decoder(vocab=65, depth=2, width=64, layer=Layer(Attention(heads=4)), base=BASE), data=corpus,
        optimizer=optim.AdamW(peak=2 ** -7, schedule=optim.Cosine(warmup=10), weight_decay=0.0),
        steps=100, cadence=dataclasses.replace(chars.cadence, log=10, eval=0, save=0))


def sweep():
    sizes = zipped({'model.width': [64, 128, 256, 512], 'model.layer.attention.heads': [4, 8, 16, 32]})
    rates = {'optimizer.peak': [2.0 ** -n for n in (10, 9, 8, 7, 6, 5)]}
    return grid(sizes, {'model.base': [BASE, MupBase()]}, rates, zipped(dict.fromkeys(records.SEEDS, range(2))))
