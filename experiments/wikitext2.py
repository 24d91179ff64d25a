"""WikiText-2 by words, on its standard split: a decoder of 5.0 million parameters, tied to 33,278 words.

    lm train experiments/wikitext2.py
    lm eval runs/wikitext2 --split=valid --stride=64

The files are wikitext-2's train.txt and test.txt, compressed, in the folder of data sets (docs/data.md).
Test perplexity 189.2 in windows of 128 after 1,950 steps, one epoch: 20.7 CPU minutes on one core (jax 0.12), the test
included.
"""
from lm import data, optim, train
from lm.models import Decoder, Layer
from lm.nn import MLP, Attention, Relu2, RMSNorm


def config():
    return train.Config(
        model=Decoder(vocab=33278, depth=4, width=128,
                      layer=Layer(Attention(heads=4, qk_norm=RMSNorm()), MLP(activation=Relu2()))),
        data=data.Corpus(train=data.Files('wikitext2/train.txt.gz'), valid=data.Files('wikitext2/test.txt.gz'),
                         tokenizer=data.Words(), context=128, batch=8),
        optimizer=optim.Muon(peak=5e-3, schedule=optim.Linear(warmup=100, end=0.0), weight_decay=0.1, adam_rate=0.5),
        steps=1950, objective=train.NextToken(sample=' = '), cadence=train.Cadence(log=50, save=500))
