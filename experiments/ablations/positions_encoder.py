"""How a small encoder should know the order of its tokens: the schemes of positions.py, for masked characters.

    lm sweep experiments/ablations/positions_encoder.py --together=15
    lm report runs/positions_encoder_sweep --html report.html

Not run to its end yet, so it has no number; the decoder's are in positions.py.
"""
import lm
from experiments.ablations import positions
from lm import data, train


def config():
    return lm.config.override(positions.config(), {
        'model.vocab': 66, 'model.layer.attention.causal': False, 'objective': train.MaskedLM(),
        'data.tokenizer': data.Controls(data.Chars(), ('<mask>',))})


def sweep():
    return positions.sweep(causal=False)
