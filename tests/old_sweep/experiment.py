from lm import data, optim, train
from lm.models.decoder import Decoder

TEXT = data.Synthetic(count=20, length=100)


def config():
    return train.Config(
        model=Decoder(vocab=258, depth=1, heads=2, width=16),
        data=data.Corpus(train=TEXT, valid=None, tokenizer=data.Bytes(), context=16, batch=4),
        optimizer=optim.AdamW(peak=1e-3), steps=6, log_every=1)
