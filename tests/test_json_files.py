"""Files that lm wrote and reads back: what is wrong with one is said with its name and a remedy, never raised raw."""
import json
import pathlib
import re
import subprocess

import damage
import pytest

from lm import config
from lm.config import files

CHOICES = {'a?': int, 'rows': ([{'x': int}], type(None)), 'sizes': {str: int | bool}}
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
    ('1' * 5000, 'a whole number of 5000 digits'), ('{"step": NaN', 'no JSON at line 1')])
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


@pytest.mark.parametrize('text, fault', [
    ('{"rows": null, "sizes": {}}', ''), ('{"a": 1, "rows": [{"x": 2}], "sizes": {"b": 3, "c": true}}', ''),
    ('{"a": null, "rows": null, "sizes": {}}', 'a is NoneType, not an int'),
    ('{"rows": [{"x": 2}, {}], "sizes": {}}', "no 'x' in rows[1]"),
    ('{"rows": 1, "sizes": {}}', 'rows is int, not a list'),
    ('{"rows": null, "sizes": {"b": 1, "c": 1.5}}', 'sizes.c is float, not an int or a bool')])
def test_items_may_be_absent_of_any_name_or_of_several_shapes(text, fault):
    if fault:
        with pytest.raises(ValueError, match=re.escape(fault)):
            files.parse_json(text, CHOICES)
    else:
        assert files.parse_json(text, CHOICES)['rows'] in (None, [{'x': 2}])


@pytest.mark.parametrize('obstacle', damage.OBSTACLES)
def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path, obstacle):
    path = tmp_path / 'a.json'
    obstacle(path)
    with pytest.raises(config.Error, match=f'cannot read {path}: .*; start again.'):
        files.read_json(path, dict, 'start again.')
    if obstacle == damage.absent:
        assert files.read_json(path, dict, '', optional=True) is None
    else:
        with pytest.raises(config.Error, match=f'cannot read {path}'):
            files.read_json(path, dict, '', optional=True)


def test_a_warning_is_one_line_and_comes_once(capsys):
    files.warn('a\nb')
    files.warn('a\nb')
    assert capsys.readouterr().err == 'lm: a b\n'


def test_a_sealed_object_is_read_whole_or_refused(tmp_path):
    value = {'step': 3, 'loss': 2.25, 'name': 'a "b", {c}'}
    for text in (json.dumps(value), json.dumps(value, indent=1) + '\n'):
        content = files.sealed(text).encode()
        assert files.parse_json(content, dict) == value and json.loads(content).keys() - value.keys() == {'crc32'}
        for place in range(8 * len(content)):
            flipped = bytearray(content)
            flipped[place // 8] ^= 1 << place % 8
            with pytest.raises(ValueError):
                files.parse_json(bytes(flipped), dict)
    with pytest.raises(ValueError, match='after an edit by hand, remove that item'):
        files.parse_json(files.sealed('{"a": 1}').replace('1,', '2,'), dict)
    assert files.parse_json('{"a": 2}', dict) == {'a': 2} and files.parse_json('{}', dict) == {}
    with pytest.raises(ValueError, match="^'crc72' is the checksum of the content and should be named crc32$"):
        files.parse_json(files.sealed('{"a": 1}').replace('crc32', 'crc72'), dict)


def test_a_thousand_directories_in_one_another_are_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    deep = pathlib.Path('a/' * 1500)
    try:
        files.make_directory(deep)
        files.make_directory(deep)
        assert deep.is_dir()
    finally:
        subprocess.run(['rm', '-rf', 'a'], check=True)  # pytest's own removal recurses
    (tmp_path / 'file').write_text('')
    with pytest.raises(FileExistsError):
        files.make_directory(tmp_path / 'file')
    with pytest.raises(NotADirectoryError):
        files.make_directory(tmp_path / 'file' / 'a' / 'b')
    (tmp_path / 'gone').mkdir()
    monkeypatch.chdir(tmp_path / 'gone')
    (tmp_path / 'gone').rmdir()
    with pytest.raises(FileNotFoundError):
        files.make_directory(pathlib.Path('a'))
