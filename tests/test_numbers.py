"""Every number that an experiment can set: what makes no sense is refused where it is typed, in one line."""
import dataclasses
import math
import pathlib
import typing

import pytest

from lm import config
from lm.config.annotations import hints, is_component
from lm.config.overrides import branches
from lm.config.values import Text

ROOT = pathlib.Path(__file__).resolve().parents[1]
NO_NUMBERS = ('nan', 'inf', '-inf', '1' + '0' * 400, '1e400', '', '[1]', '{[1]: 2}', '9' * 5000)
NEGATIVE = {'Config.seed', *(f'{name}.mask' for name in ('MaskedLM', 'MaskedDiffusion', 'Elbo', 'Pixels')),
            # a seed is any of 32 bits, a mask counts from the end too
            'Files.limit', 'Synthetic.count', 'Synthetic.length', 'Synthetic.seed', 'SentencePiece.sample'}


def number_fields():
    """Returns {'Class.field': (experiment, dotted key)} of every number in what a shipped experiment is made of."""
    known = {}
    for path in sorted((ROOT / 'experiments').glob('*.py')):
        settings = config.load(path).config
        for key, component in [('', settings), *branches(settings)]:
            if is_component(component):
                for name, hint in hints(type(component)).items():
                    if _kind(hint) in (int, float):
                        known.setdefault(f'{type(component).__name__}.{name}', (settings, f'{key}.{name}'.strip('.')))
    return known


def _kind(hint):
    """Returns the type that an annotation is of, without None and conditions."""
    members = [member for member in typing.get_args(hint) if member is not type(None)] or [hint]
    return typing.get_args(members[0])[0] if typing.get_origin(members[0]) is typing.Annotated else members[0]


FIELDS = number_fields()


def refusal(settings, key, text):
    """Returns why an override is refused, '' where it is taken."""
    try:
        config.override(settings, {key: Text(text)})
    except config.Error as error:
        assert '\n' not in str(error) and len(str(error)) < 1000
        return str(error)
    return ''


@pytest.mark.parametrize('field', FIELDS)
def test_no_field_takes_what_is_no_number(field):
    settings, key = FIELDS[field]
    assert [text for text in NO_NUMBERS if not refusal(settings, key, text).startswith(key)] == []


@pytest.mark.parametrize('field', FIELDS)
def test_no_field_takes_a_number_that_makes_no_sense(field):
    settings, key = FIELDS[field]
    assert refusal(settings, key, '1e30') or _kind(hints_of(field)) is float
    assert refusal(settings, key, '-5') or field in NEGATIVE


def hints_of(field):
    """Returns the annotation of 'Class.field'."""
    settings, key = FIELDS[field]
    owner = dict(branches(settings)).get(key.rpartition('.')[0], settings)
    return hints(type(owner))[key.rpartition('.')[2]]


@pytest.mark.parametrize('key, text, message', [
    ('optimizer.peak', 'nan', 'optimizer.peak=nan is no number in float32; try optimizer.peak=0.003.'),
    ('optimizer.weight_decay', 'inf', 'optimizer.weight_decay=inf is no number in float32; try '
     'optimizer.weight_decay=0.1.'),
    ('optimizer.clip', 'nan', 'optimizer.clip=nan is no number in float32; try optimizer.clip=1.0.'),
    ('optimizer.eps', '1e-300', 'optimizer.eps=1e-300 is no number in float32; try optimizer.eps=1e-08.'),
    ('cadence.save', '-5', 'cadence.save=-5 is not an int in [0, 2147483647]; try cadence.save=100.'),
    ('cadence', 'Cadence(save=-5)', 'cadence.save=-5 is not an int in [0, 2147483647]; try cadence.save=0.'),
    ('seed', '99999999999999999999', 'seed=99999999999999999999 is not an int of 64 bits; try seed=0.'),
    ('seed', '4294967296', 'seed=4294967296 is not an int in [-2147483648, 2147483647]; try seed=0.'),
    ('model.layer.attention.kv_heads', '2147483647', 'kv_heads=2147483647 does not divide heads=2; '
     'try model.layer.attention.kv_heads=2.'),
    ('model.execution.vocab_chunks', '2147483647',
     'vocab_chunks=2147483647 does not divide the 384 rows of the output; try model.execution.vocab_chunks=384.'),
])
def test_refusals(key, text, message):
    assert refusal(config.load(ROOT / 'experiments' / 'tiny.py').config, key, text) == message


@pytest.mark.parametrize('text', ['{}', '{[1]: 2}'])
def test_what_is_no_component_is_refused_with_those_that_there_are(text):
    """Models that other tests define are listed too."""
    refused = refusal(config.load(ROOT / 'experiments' / 'tiny.py').config, 'model', text)
    assert refused.startswith(f'model={text} is not a component that fits here; there are ') and 'Decoder' in refused


def test_a_long_value_is_cut_and_its_remedy_kept():
    refused = refusal(config.load(ROOT / 'experiments' / 'tiny.py').config, 'steps', '9' * 5000)
    assert refused == (f'steps={"9" * 594} [... 4,136 more characters ...] '
                       f'{"9" * 270} is not an int; try steps=200.')


def test_components_check_their_own_numbers():
    """As they are constructed, before what would fail over them elsewhere."""
    settings = config.load(ROOT / 'experiments' / 'tiny.py').config
    for _, component in branches(settings):
        if is_component(component) and type(component).__module__.startswith(('lm.models', 'lm.nn', 'lm.optim')):
            for name, hint in hints(type(component)).items():
                if _kind(hint) in (int, float):
                    with pytest.raises(config.Error, match=f'^{name}=nan is '):
                        dataclasses.replace(component, **{name: math.nan})
