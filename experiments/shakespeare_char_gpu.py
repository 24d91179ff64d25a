"""Character-level Shakespeare, nanoGPT's preset for a GPU: 6 layers, 6 heads, width 384, dropout 0.2.

    lm train experiments/shakespeare_char_gpu.py

The text is that of shakespeare_char.py. nanoGPT reports a best validation loss of 1.4697.
"""
import dataclasses

from experiments import shakespeare_char
from lm import optim, train
from lm.models import Decoder, Embedding, Layer
from lm.nn import Attention, LayerNorm, Learned, NoPE


def config():
    return train.Config(
        model=Decoder(vocab=65, depth=6, width=384, embedding=Embedding(position=Learned(256), dropout=0.2),
                      layer=Layer(Attention(heads=6, position=NoPE()), norm=LayerNorm(bias=False), dropout=0.2)),
        data=dataclasses.replace(shakespeare_char.config().data, context=256, batch=64),
        optimizer=optim.AdamW(peak=1e-3, schedule=optim.Cosine(warmup=100, end=0.1), b2=0.99, weight_decay=0.1),
        steps=5000, cadence=train.Cadence(log=50, eval=250, save=250))
