"""Damaged and hostile checkpoints of others: each is refused in one line or read as it was, nothing is executed."""
import json
import random
import shutil
import struct

import architectures
import checkpoints_made as made
import numpy as np
import pytest

from lm import config, convert, trees
from lm.convert import start

MODEL = architectures.DECODERS['llama']
CASES = 150
ODD = (None, True, -1, 0, 2 ** 63, 1e308, float('nan'), '', 'x' * 300, '__import__("os").system("true")', [], [1, [2]],
       {}, {'a': {}}, '../../etc/passwd', '\x00', ['os:system'])


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    """Returns (a Hugging Face directory, a GGUF file) of one model."""
    place = tmp_path_factory.mktemp('whole')
    made.directory(place / 'model', MODEL)
    made.gguf_file(place / 'model.gguf', MODEL)
    return place / 'model', place / 'model.gguf'


def outcome(path):
    """Returns the config.Error of what is read at a path, its one line, or {path: numbers} of all parameters."""
    try:
        checkpoint = start.opened(path)
        model = start.model_of(checkpoint)
        binding, tensor = start.bound(checkpoint, model)
        return {name: parameter.read(tensor) for name, parameter in binding.parameters.items()}
    except config.Error as error:
        assert '\n' not in str(error) and len(str(error)) < 3000
        return str(error)


def same(result, expected):
    return isinstance(result, dict) and all(np.array_equal(result[name], expected[name], equal_nan=True)
                                            for name in expected)


def damaged(content, dice):
    """Returns bytes with one kind of damage in their first part, where headers are."""
    kind, at = dice.randrange(5), dice.randrange(min(len(content), 2000))
    if kind == 0:
        return content[:dice.randrange(len(content))]
    if kind == 1:
        return content[:at] + bytes([content[at] ^ 1 << dice.randrange(8)]) + content[at + 1:]
    if kind == 2:
        return content[:at] + dice.randbytes(dice.randrange(1, 9)) + content[at:]
    if kind == 3:
        return content[:at] + struct.pack('<Q', dice.choice([0, 2 ** 31, 2 ** 60, 2 ** 64 - 1])) + content[at + 8:]
    return content[:at] + content[at + dice.randrange(1, 60):]


def test_damaged_gguf_files_are_refused_or_read(whole, tmp_path):
    content, refused = whole[1].read_bytes(), 0
    for seed in range(CASES):
        (tmp_path / 'damaged.gguf').write_bytes(damaged(content, random.Random(seed)))
        refused += isinstance(outcome(tmp_path / 'damaged.gguf'), str)
    assert refused > CASES / 2


def test_damaged_safetensors_are_refused_or_read_as_they_were(whole, tmp_path):
    expected, content = outcome(whole[0]), (whole[0] / 'model.safetensors').read_bytes()
    shutil.copytree(whole[0], tmp_path / 'model')
    refused = 0
    for seed in range(CASES):
        (tmp_path / 'model' / 'model.safetensors').write_bytes(damaged(content, random.Random(seed)))
        refused += isinstance(outcome(tmp_path / 'model'), str)
    assert isinstance(expected, dict) and refused > CASES / 2


def test_hostile_settings_are_refused_or_change_nothing(whole, tmp_path):
    expected, known = outcome(whole[0]), json.loads((whole[0] / 'config.json').read_text())
    shutil.copytree(whole[0], tmp_path / 'model')
    for key in known:
        for value in ODD:
            (tmp_path / 'model' / 'config.json').write_text(json.dumps({**known, key: value}))
            result = outcome(tmp_path / 'model')
            assert isinstance(result, str) or same(result, expected), (key, value)


@pytest.mark.parametrize('text', ['', '[]', 'null', '[' * 100_000, '{"model_type": "llama"}', '\ufeff{}', '{"a": NaN}'])
def test_a_config_that_is_no_description_of_a_model_is_refused(whole, tmp_path, text):
    shutil.copytree(whole[0], tmp_path / 'model')
    (tmp_path / 'model' / 'config.json').write_text(text)
    assert isinstance(outcome(tmp_path / 'model'), str)


def test_both_files_hold_the_same_model(whole):
    models = [convert.model(path) for path in whole]
    leaves = [trees.flatten(kind(str(path)).params(model, None))
              for kind, path, model in zip((convert.HuggingFace, convert.Gguf), whole, models, strict=True)]
    for name, array in leaves[0].items():
        np.testing.assert_array_equal(array, leaves[1][name], err_msg=name)
