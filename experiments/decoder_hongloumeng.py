"""A decoder of Chinese: Dream of the Red Chamber (红楼梦), 6,000 pieces with bytes for what is rare.

    lm train experiments/decoder_hongloumeng.py
    lm generate runs/decoder_hongloumeng '宝玉听了，' --temperature=0.7

The novel, of the 18th century, is in the folder of data sets (docs/data.md); its last tenth is held out. 2.93 million
parameters, 1,000 steps of 2,048 tokens, 3.6 epochs: 1.823 bits a byte of the text held out (perplexity 177.9 a piece),
where Kneser-Ney of order 5 has 2.058 and xz 2.794. 15 CPU minutes on two shared cores. Its sample begins:

    宝玉听了，方散度了一夜．一欲时，宝玉方红了个头，便看见是他睡在床上．原来贾母自倒觉赤心，故笑道：“可不是那个光景，
    我甚喜欢他．
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
