"""Files that lm wrote and reads back: what is wrong with one is said with its name and a remedy, never raised raw."""
import pytest

from lm import config
from lm.config import files

RECORD = {'step': int, 'losses': [int | float], 'run': {'name': str}}


def test_a_value_of_the_shape_is_returned_with_what_it_has_beside():
    text = '{"step": 3, "losses": [1, 2.5], "run": {"name": "a", "seed": 1}, "more": null}'
    assert files.parse_json(text, RECORD) == {'step': 3, 'losses': [1, 2.5], 'run': {'name': 'a', 'seed': 1},
                                              'more': None}
    assert files.parse_json(b'[]', [int]) == []
    assert files.parse_json('null', int | None) is None


@pytest.mark.parametrize('text, fault', [
    (b'{"step": \xff}', 'not UTF-8 at byte 9'), ('', 'no JSON at line 1: Expecting value'),
    ('{\n"step": 1', "no JSON at line 2: Expecting ',' delimiter"), ('[' * 100_000, 'nested over 100 deep'),
    ('[' * 300 + ']' * 300, 'nested over 100 deep'), ('[1]', 'it is list, not a dict'),
    ('{"step": true, "losses": []}', 'step is bool, not an int'), ('{"losses": []}', "no 'step' in it"),
    ('{"step": 1, "losses": [1, "x"]}', 'losses[1] is str, not an int or a float'),
    ('{"step": 1, "losses": [], "run": {}}', "no 'name' in run"),
    ('1' * 5000, 'Exceeds the limit'), ('{"step": NaN', 'no JSON at line 1')])
def test_what_is_wrong_is_said(text, fault):
    with pytest.raises(ValueError) as refusal:
        files.parse_json(text, RECORD)
    assert fault in str(refusal.value) and len(str(refusal.value)) < 200


def test_a_file_is_named_with_the_remedy(tmp_path):
    path = tmp_path / 'record.json'
    with pytest.raises(config.Error, match=f'cannot read {path}: No such file or directory; start again.'):
        files.read_json(path, dict, 'start again.')
    path.write_text('null')
    with pytest.raises(config.Error, match=r'record.json is damaged \(it is NoneType, not a dict\); start again.'):
        files.read_json(path, dict, 'start again.')
