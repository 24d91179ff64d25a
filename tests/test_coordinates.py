"""What `lm coord-check` measures, what it finds wrong, and what it says."""
import re

import numpy as np
import pytest

from lm import cli, config, data, optim, train
from lm.debug import coord_check
from lm.models import Decoder, Embedding, Layer, MupBase
from lm.nn import MLP, Attention, Experts

FILE = '''
from lm import data, optim, train
from lm.models import Decoder, Layer, MupBase
from lm.nn import Attention

TEXT = data.Synthetic(count=20, length=400)


def config():
    return train.Config(
        model=Decoder(vocab=258, depth=1, width=16, layer=Layer(Attention(2)), base=MupBase(width=16, heads=2)),
        data=data.Corpus(train=TEXT, valid=None, tokenizer=data.Bytes(), context=16, batch=8),
        optimizer=optim.AdamW(peak=3e-3, schedule=optim.Cosine(warmup=100)), steps=200)
'''


def settings(**fields):
    corpus = data.Corpus(train=data.Synthetic(count=9, length=99), valid=None, tokenizer=data.Bytes(), context=8,
                         batch=4)
    return train.Config(model=Decoder(vocab=258, **fields), data=corpus, optimizer=optim.AdamW(), steps=3)


def sizes_of(model):
    attention, mlp = model.layers[-1].attention, model.layers[-1].mlp
    return model.width, attention.heads, attention.kv_heads, attention.head_size(model.width), mlp.ff


@pytest.mark.parametrize('fields, sizes', [
    ({'layer': Layer(Attention(4))}, (128, 8, 0, 16, 0)),
    ({'layer': Layer(Attention(4, 2), MLP(96))}, (128, 8, 4, 16, 192)),
    ({'layer': Layer(Attention(4)), 'base': MupBase(width=32)}, (128, 4, 0, 32, 0)),
    ({'layer': Layer(Attention(4)), 'base': MupBase(width=32, heads=2)}, (128, 8, 0, 16, 0)),
    ({'pattern': (Layer(Attention(4, window=8)), Layer(Attention(4)))}, (128, 8, 0, 16, 0)),
    ({'layer': Layer(Attention(4), Experts(4, 2, ff=48)), 'base': MupBase(width=32, heads=2, expert_ff=24)},
     (128, 8, 0, 16, 96)),
])
def test_a_wider_model_grows_in_what_its_base_names(fields, sizes):
    model = coord_check.widened(settings(width=64, **fields), 128).model
    assert sizes_of(model) == sizes
    assert model.base == fields.get('base', MupBase())
    assert len(model.layers) == len(fields.get('pattern', 'x'))


def made(exponents):
    """Returns the Trace of sizes and changes that follow powers of the width, {(kind, tap): power}."""
    widths = (64, 128, 256)
    noise = np.random.default_rng(0).normal(1, 0.02, (3, 4, 3))

    def kind(name):
        return {tap: noise * np.array(widths, float)[:, None, None] ** exponents.get((name, tap), 0.0)
                for tap in coord_check.TAPS}
    return coord_check.Trace(widths, kind('size'), kind('change'))


@pytest.mark.parametrize('exponents, faults', [
    ({}, []),
    ({('size', 'logits'): -0.5}, []),
    ({('size', 'residual'): 0.5}, ['residual', 'grows as width^0.5', 'grows']),
    ({('change', 'mlp'): -0.5}, ['mlp, change after 2 steps, vanishes as width^-0.5']),
    ({('change', 'logits'): 1.0, ('size', 'mlp'): 0.3}, ['logits, change after 2 steps, grows as width^1.0']),
])
def test_powers_of_the_width_are_found_and_the_worst_is_named(exponents, faults):
    table = coord_check.rows(made(exponents))
    passed, message = coord_check.verdict(table, settings(base=MupBase(width=384)))
    assert passed is (not faults) and all(fault in message for fault in faults)
    for row in table:
        kind = 'change' if 'change' in row.when else 'size'
        assert row.exponent == pytest.approx(exponents.get((kind, row.tap), 0.0), abs=0.03) and row.spread < 0.05


def test_what_is_not_finite_or_never_moves_fails():
    for value, fault, remedy in (np.nan, 'is not finite', 'try a lower rate'), \
            (0.0, 'is zero', 'try model.base.width=384 model.base.heads=6'):
        trace = made({})
        trace.change['mlp'][1, 0, -1] = value
        passed, message = coord_check.verdict(coord_check.rows(trace), settings())
        assert not passed and f'mlp, change after 2 steps, {fault}' in message
        assert remedy in message


def check(tmp_path, *arguments):
    file = tmp_path / 'narrow.py'
    file.write_text(FILE)
    return cli.main(['coord-check', str(file), f'--cache={tmp_path / "cache"}', *arguments])


@pytest.mark.long
def test_mup_passes_and_the_standard_fails(tmp_path, capsys):
    flags = ['--widths=16,64', '--seeds=2', '--steps=3', f'--html={tmp_path / "page.html"}']
    assert check(tmp_path, *flags) == 0
    assert 'pass: ' in capsys.readouterr().out
    assert check(tmp_path, *flags, 'model.base=MupBase()') == 1
    printed = capsys.readouterr().out
    assert 'fail: ' in printed and 'grows as width^' in printed
    assert 'try model.base.width=16 model.base.heads=2' in printed
    text = (tmp_path / 'page.html').read_text()
    assert text.count('data-plot=') == 2 and printed.splitlines()[-1].split(';')[0] in text.replace('&#x27;', "'")
    assert not re.findall(r'(?:src|href)=["\'](?!data:)', text)


@pytest.mark.parametrize('arguments, words', [
    (['--widths=64'], ['--widths=64', 'try --widths=64,128']),
    (['--widths=a,b'], ['--widths=a,b', 'try --widths=64,128']),
    (['--widths=16,21'], ['width=21', 'whole', 'try width=24']),
    (['model.base.width=-4'], ['base', 'width=-4', 'try model.base.width=16']),
    (['--steps=0'], ['--steps=0', 'try --steps=3']),
    (['model.base=MupBase(heads=2)'], ['names no width', 'try model.base.width=16']),
    (['--widths=16,32', 'model.vocab=99'], ['model.vocab=99', 'try model.vocab=258']),
])
def test_bad_input_is_one_line(tmp_path, capsys, arguments, words):
    assert check(tmp_path, *arguments) == 2
    error = capsys.readouterr().err
    assert error.count('\n') == 1 and all(word in error for word in words)


def test_the_check_is_at_the_peak_rate_without_dropout():
    peak = coord_check.at_peak_rate(settings(layer=Layer(dropout=0.3), embedding=Embedding(dropout=0.3)), 4)
    assert peak.model.layer.dropout == peak.model.embedding.dropout == 0
    assert float(peak.optimizer.rate(4)(0)) == np.float32(1e-3)
    assert config.diff(peak, coord_check.at_peak_rate(peak, 4)) == {}
