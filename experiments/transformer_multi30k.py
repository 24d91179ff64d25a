"""Translation from German to English on Multi30k: the original Transformer, of 9.4 million parameters, norms first.

    lm train experiments/transformer_multi30k.py
    lm translate runs/transformer_multi30k multi30k/test_2016_flickr.de.gz \
        --references=multi30k/test_2016_flickr.en.gz > test_2016_flickr.hyp

The files are those of the task (Elliott et al. 2016, arXiv:1605.00459), in the folder of data sets (docs/data.md).
9.4 million parameters, 13 epochs: BLEU 41.9 on the test captions of 2016 by five beams (sacrebleu, 13a, cased; 42.2
lower-cased); perplexity 4.32 on the validation captions. 132 CPU minutes on two cores shared with other work, and 15 to
translate.
"""
from lm import data, optim, train
from lm.models import Embedding, EncoderDecoder, Half, Layer
from lm.nn import MLP, Attention, LayerNorm, NoPE, Relu, Sinusoidal

SPLITS = ('train', 'val')


def half(cross=None, **fields):
    return Half(4, Layer(Attention(heads=8, position=NoPE(), **fields), MLP(ff=1024, activation=Relu()), cross=cross,
                         norm=LayerNorm(), dropout=0.2))


def config():
    train_pairs, valid_pairs = (data.Parallel(data.Lines(f'multi30k/{split}.de.gz'),
                                              data.Lines(f'multi30k/{split}.en.gz')) for split in SPLITS)
    return train.Config(
        model=EncoderDecoder(vocab=8000, start=2, width=256, encoder=half(causal=False),
                             decoder=half(cross=Attention(heads=8, causal=False, position=NoPE())),
                             embedding=Embedding(Sinusoidal(), scaled=True, dropout=0.2)),
        data=data.Corpus(train=train_pairs, valid=valid_pairs, tokenizer=data.SentencePiece(size=8000), context=64,
                         batch=64, packing='pairs'),
        optimizer=optim.Muon(peak=4e-3, schedule=optim.Linear(warmup=100, end=0.0), weight_decay=0.1, adam_rate=0.5),
        steps=1600, objective=train.Conditional(smoothing=0.1, sample='Ein Hund läuft über den Strand.'),
        cadence=train.Cadence(log=20, eval=200, save=200))
