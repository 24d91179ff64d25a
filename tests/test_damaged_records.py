"""Records of experiments, damaged anywhere: one line that names the place, never another exception."""
import copy
import json
import pathlib
import random

import pytest

from lm import config

ROOT = pathlib.Path(__file__).resolve().parents[1]
NESTED = []
for _ in range(5000):
    NESTED = [NESTED]
JUNK = (None, True, -5, 1e30, 10 ** 400, float('nan'), '', 'text', 'lm.nn:Rope', 'x' * 100_000, [], [1], {}, NESTED,
        {'type': 'tuple'}, {'type': 'tuple', 'value': 'abc'}, {'type': 'set', 'value': [[1]]},
        {'type': 'dict', 'value': [1]}, {'type': 'dict', 'value': [[[1], 2]]}, {'type': 'float', 'value': 'x'},
        {'type': 'float', 'value': 'nan'}, {'type': 'path', 'value': 5}, {'type': 'object', 'value': [1]},
        {'type': [1]}, {'type': None}, {'type': 'lm.nn:'}, {'type': ':x'}, {'type': 'lm..x:Y'},
        {'type': 'lm.nn:Rope', 'value': 1}, {'type': 'lm.models:Decoder', 'heads': None},
        {'type': 'lm.train:Config', 'log_every': 3})
OLD = {'vocab': 300, 'heads': 4, 'norm': 'rms', 'activation': 'swiglu', 'windows': {'type': 'tuple', 'value': [0, 8]},
       'position': {'type': 'lm.positions:Rope', 'base': 1e4}, 'experts': None, 'type': 'lm.models.decoder:Decoder'}


@pytest.fixture(scope='module')
def records():
    """Returns the records of two shipped experiments, one of them also as an older version wrote it."""
    tiny, sparse = (config.dump(config.load(ROOT / 'experiments' / f'{name}.py').config)
                    for name in ('tiny', 'qwen3_30b_a3b'))
    old = {**tiny, 'model': OLD, 'log_every': 3}
    for record in (tiny, sparse, old):
        config.build(record)
    return tiny, sparse, old


def places(value, path=()):
    """Yields the path of everything inside a JSON value."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, inner in inside:
        yield (*path, name)
        yield from places(inner, (*path, name))


def damaged(record, rng):
    """Returns a record with one place replaced, removed or added to."""
    record = copy.deepcopy(record)
    *path, name = rng.choice(list(places(record)))
    owner = record
    for part in path:
        owner = owner[part]
    match rng.choice(('replace', 'replace', 'remove', 'add')):
        case 'replace':
            owner[name] = rng.choice(JUNK)
        case 'remove':
            del owner[name]
        case 'add' if isinstance(owner, dict):
            owner[rng.choice(('type', 'value', 'heads', ''))] = rng.choice(JUNK)
        case 'add':
            owner.append(rng.choice(JUNK))
    return record


def test_a_damaged_record_is_refused_in_one_line_or_means_something(records):
    rng, refused = random.Random(0), 0
    for _ in range(200):
        try:
            config.build(damaged(rng.choice(records), rng))
        except config.Error as error:
            refused += 1
            assert '\n' not in str(error) and len(str(error)) < 1000
    assert refused > 130


@pytest.mark.parametrize('key, value, message', [
    ('steps', '200', 'steps=200 is not an int in [1, 2147483647]; try steps=1.'),
    ('steps', None, 'steps=None is not an int; try steps=1.'),
    ('steps', [], 'steps=[] is not an int; try steps=1.'),
    ('optimizer.peak', {'type': 'float', 'value': 'nan'}, 'optimizer.peak=nan is no number in float32; try '
     'optimizer.peak=0.001.'),
    ('optimizer.clip', {'type': 'float', 'value': 'one'}, "optimizer.clip is no float (could not convert string to "
     "float: 'one'); restore the record from a copy, or use the version that wrote it."),
    ('cadence.save', -5, 'cadence.save=-5 is not an int in [0, 2147483647]; try cadence.save=0.'),
    ('model.pattern', [], 'model.pattern=[] is not a tuple of Layer, ...; try model.pattern=().'),
    ('model.pattern', {'type': 'tuple'}, "model.pattern={'type': 'tuple'} is nothing that lm records; restore the "
     'record from a copy, or use the version that wrote it.'),
    ('model', None, 'model=None is not a Model; try model=Decoder.'),
    ('data', {}, 'data={} is not a Corpus; try data=Corpus.'),
])
def test_a_value_restored_is_checked_as_one_typed(records, key, value, message):
    record = copy.deepcopy(records[0])
    owner = record
    *path, name = key.split('.')
    for part in path:
        owner = owner[part]
    owner[name] = value
    with pytest.raises(config.Error) as caught:
        config.build(record)
    assert str(caught.value) == message


@pytest.mark.parametrize('record', [{'type': 'lm.models:Decoder', 'windows': 3, 'heads': 4, 'vocab': 5},
                                    {'type': 'lm.models:Decoder', 'position': {}, 'vocab': 5}])
def test_fields_of_an_older_version_that_none_wrote_are_told(record):
    with pytest.raises(config.Error, match='lm.models:Decoder has fields that no version wrote'):
        config.build(json.loads(json.dumps(record)))
