"""How many pieces a tokenizer should have, in bits per byte: bytes and three sizes, four rates, five seeds.

    lm sweep experiments/ablations/tokenizers.py --together=15
    lm report runs/tokenizers_sweep --html report.html
"""
from experiments.ablations import small
from lm import data
from lm.sweep import grid

config = small.config
SIZES = (512, 1024, 2048)


def sweep():
    kinds = [{'data.tokenizer': data.Bytes(), 'model.vocab': 258},
             *({'data.tokenizer': data.SentencePiece(size=size), 'model.vocab': size} for size in SIZES)]
    return grid(kinds, {'optimizer.peak': [1e-3, 3e-3, 1e-2, 3e-2]}, small.SEEDS)
