"""How a small encoder should know the order of its tokens: the schemes of positions.py, for masked characters.

    lm sweep experiments/ablations/positions_encoder.py --together=15
    lm report runs/positions_encoder_sweep --html report.html

"""
import dataclasses

from experiments.ablations import positions
from lm import data, train


def config():
    base = positions.config()
    layer = dataclasses.replace(base.model.layer, attention=dataclasses.replace(base.model.layer.attention,
                                                                                causal=False))
    return dataclasses.replace(
        base, model=dataclasses.replace(base.model, vocab=66, layer=layer), objective=train.MaskedLM(),
        data=dataclasses.replace(base.data, tokenizer=data.Controls(data.Chars(), ('<mask>',))))


def sweep():
    return positions.sweep(causal=False)
