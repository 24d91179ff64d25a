"""nanoGPT's character-level preset for a CPU, better tuned: the same layers and width, half the tokens.

    lm train experiments/shakespeare_fast.py

The text is that of shakespeare_char.py.
Hardware and time: two CPU cores, 70 s. Reached: validation loss 1.651 over the whole held-out text in windows of 64.
"""
import dataclasses

from experiments import shakespeare_char
from lm import optim
from lm.models import Decoder, Layer
from lm.nn import MLP, Attention, Relu2, RMSNorm


def config():
    base = shakespeare_char.config()
    return dataclasses.replace(
        base,
        model=Decoder(vocab=65, depth=4, width=128,
                      layer=Layer(Attention(heads=4, qk_norm=RMSNorm()), MLP(activation=Relu2()))),
        optimizer=optim.Muon(peak=1e-2, schedule=optim.Linear(warmup=20, end=0.0), weight_decay=0.1),
        steps=1000, cadence=dataclasses.replace(base.cadence, eval=500))
