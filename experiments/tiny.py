"""A decoder small enough to debug with: synthetic text, bytes, a few seconds on a laptop.

    lm train experiments/tiny.py

Hardware and time: any CPU, under 10 s. Reached: see the validation loss it prints; nothing here is worth comparing.
"""
from lm import data, optim, train
from lm.models import Decoder, Layer
from lm.nn import Attention

TEXT = data.Synthetic(count=300, length=2000)


def config():
    return train.Config(
        model=Decoder(vocab=258, depth=2, width=64, layer=Layer(Attention(heads=2))),
        data=data.Corpus(train=data.Pick(TEXT, 0.0, 0.9), valid=data.Pick(TEXT, 0.9, 1.0),
                         tokenizer=data.Bytes(), context=64, batch=16),
        optimizer=optim.AdamW(peak=3e-3, schedule=optim.Cosine(warmup=10, end=0.1)),
        steps=200, cadence=train.Cadence(log=20, save=100))
