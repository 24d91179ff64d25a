"""A small BERT on WikiText-2: masked language modelling of whole words, 4,096 word pieces and a mask token.

    lm train experiments/bert_tiny.py

The files are wikitext-2's train.txt and test.txt, compressed, in the folder of data sets (docs/data.md).
1.36 million parameters, 800 steps of 1,024 tokens, a fifth of an epoch: hidden pieces of the test text at 5.067 nats
(perplexity 158.6), where their frequencies in the training text give 5.512. 4.6 CPU minutes on two shared cores, the
test included.
"""
from lm import data, optim, train
from lm.models import Encoder, TypedEmbedding
from lm.models.encoder import NORM, bert_layer
from lm.nn import Learned


def config():
    return train.Config(
        model=Encoder(vocab=4097, depth=4, width=128, layer=bert_layer(heads=4),
                      embedding=TypedEmbedding(Learned(64), norm=NORM)),
        data=data.Corpus(train=data.Files('wikitext2/train.txt.gz'), valid=data.Files('wikitext2/test.txt.gz'),
                         tokenizer=data.Controls(data.SentencePiece(size=4096), ('<mask>',)), context=64, batch=16,
                         words=True),
        optimizer=optim.Muon(peak=5e-3, schedule=optim.Linear(warmup=80, end=0.0), weight_decay=0.1, adam_rate=0.5),
        steps=800, objective=train.MaskedLM(whole_words=True), cadence=train.Cadence(log=50, save=400))
