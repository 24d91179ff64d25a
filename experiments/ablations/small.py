"""What the ablations here vary: a decoder of 2 layers and width 64 on 0.3M of Shakespeare's characters.

    lm train experiments/ablations/small.py
"""
from experiments import shakespeare_char
from lm import optim, records, train
from lm.models import Decoder, Layer
from lm.nn import Attention
from lm.sweep import zipped

SEEDS = zipped(dict.fromkeys(records.SEEDS, range(5)))
SCHEDULE = optim.Cosine(warmup=50, end=0.1)


def config():
    data = shakespeare_char.config().data
    return train.Config(
        model=Decoder(vocab=65, depth=2, width=64, layer=Layer(Attention(heads=4))), data=data,
        optimizer=optim.AdamW(peak=3e-3, schedule=SCHEDULE, weight_decay=0.1),
        steps=400, cadence=train.Cadence(log=50, eval=100, eval_batches=20))
