"""Which learning rate suits a tiny decoder, and with which weight decay: five rates, two decays, three seeds.

    lm sweep experiments/lr_sweep.py --together=16

One trial alone is `lm train experiments/lr_sweep.py`; `lm sweep --watch runs/lr_sweep_sweep` shows how far it is.
"""
from lm import data, optim, train
from lm.models.decoder import Decoder
from lm.sweep import grid, zipped

TEXT = data.Synthetic(count=300, length=2000)


def config():
    return train.Config(
        model=Decoder(vocab=258, depth=2, heads=2, width=64),
        data=data.Corpus(train=data.Pick(TEXT, 0.0, 0.9), valid=data.Pick(TEXT, 0.9, 1.0),
                         tokenizer=data.Bytes(), context=64, batch=16),
        optimizer=optim.AdamW(peak=3e-3, schedule=optim.Cosine(warmup=10, end=0.1)),
        steps=200, log_every=20, eval_every=50, eval_batches=20, save_every=100)


def sweep():
    return grid({'optimizer.peak': [3e-4, 1e-3, 3e-3, 1e-2, 3e-2], 'optimizer.weight_decay': [0.0, 0.1]},
                zipped({'seed': range(3), 'data.seed': range(3)}))
