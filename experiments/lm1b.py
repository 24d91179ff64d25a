"""The One Billion Word benchmark through TensorFlow Datasets, at nanodo's size: 6 layers, width 512.

    lm train experiments/lm1b.py data.train.data_dir=/data/tfds data.valid.data_dir=/data/tfds

TFDS must have prepared `lm1b` as array_record.
"""
from lm import data, optim, train
from lm.models import Decoder, Layer
from lm.nn import Attention, LayerNorm


def config():
    return train.Config(
        model=Decoder(vocab=32000, depth=6, width=512, layer=Layer(Attention(heads=8), norm=LayerNorm(bias=False))),
        data=data.Corpus(train=data.Tfds('lm1b', split='train'), valid=data.Tfds('lm1b', split='test'),
                         tokenizer=data.SentencePiece(size=32000, kind='unigram'), context=512, batch=256,
                         packing='bestfit'),
        optimizer=optim.AdamW(peak=2e-3, schedule=optim.Cosine(warmup=1000, end=0.01), weight_decay=0.1),
        steps=100_000, cadence=train.Cadence(eval=2000, eval_batches=20, save=1000))
