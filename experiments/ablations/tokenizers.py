"""How many pieces a tokenizer should have, in bits per byte: bytes and three sizes, four rates, five seeds.

    lm sweep experiments/ablations/tokenizers.py --together=15
    lm report runs/tokenizers_sweep --html report.html

Hardware and time: two shared CPU cores, 80 runs in 14 CPU minutes, November 2026, jax 0.12. Validation loss in bits a
byte, five seeds each at the best rate, against bytes; p by Holm over three comparisons:

            after 307,200 tokens                                      after 227 GFLOPs
    2,048   0.003  2.598  -0.366 [-0.425, -0.306]  p 2e-4  better     2.700  -0.264 [-0.327, -0.201]  p 9e-4  better
    1,024   0.003  2.730  -0.234 [-0.281, -0.186]  p 3e-4  better     2.767  -0.197 [-0.246, -0.148]  p 9e-4  better
    512     0.003  2.855  -0.109 [-0.149, -0.070]  p 2e-3  better     2.876  -0.088 [-0.126, -0.049]  p 3e-3  better
    bytes   0.01   2.964                                              2.964

Every best rate lies inside its grid. A token is 2.75, 2.32, 1.83 and 1 bytes, so that in as many tokens the larger
vocabularies see more text; at equal FLOPs too, where the larger output layer counts, they are better, the largest most.
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
