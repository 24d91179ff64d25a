"""A decoder of Chinese: Dream of the Red Chamber (红楼梦), 6,000 pieces with bytes for what is rare.

    lm train experiments/decoder_hongloumeng.py
    lm generate runs/decoder_hongloumeng '宝玉听了，' --temperature=0.7

The novel, of the 18th century, is in the folder of data sets (docs/data.md); its last tenth is held out. Not
trained to its end yet, so it has no number.
"""
from lm import data, optim, train
from lm.models import Decoder, Layer
from lm.nn import MLP, Attention, Relu2, RMSNorm

NOVEL = data.Files('chinese_novels/hongloumeng.txt.gz')


def config():
    return train.Config(
        model=Decoder(vocab=6000, depth=4, width=192,
                      layer=Layer(Attention(heads=6, qk_norm=RMSNorm()), MLP(activation=Relu2()), dropout=0.1)),
        data=data.Corpus(train=data.Cut(NOVEL, 0.0, 0.9), valid=data.Cut(NOVEL, 0.9, 1.0),
                         tokenizer=data.SentencePiece(size=6000), context=128, batch=16),
        optimizer=optim.Muon(peak=1e-2, schedule=optim.Linear(warmup=50, end=0.0), weight_decay=0.1, adam_rate=0.5),
        steps=1000, objective=train.NextToken(sample='宝玉听了，', baselines=True),
        cadence=train.Cadence(log=50, eval=250, save=250))
