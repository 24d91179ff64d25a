"""metrics.jsonl: what is damaged is named, kept aside, and never a number."""
import json
import os
import types

import damage
import pytest
import sweeps

from lm import config, records
from lm.config import checksums, files
from lm.sweep import trials

GOOD = [{'step': 1, 'loss': 3.0}, {'step': 2, 'loss': 2.5}, {'step': 2, 'valid/loss': 2.6}, {'step': 3, 'loss': 2.4}]


def written(directory, lines, end='\n'):
    """Returns the directory of a run whose record has these lines, dicts, text or bytes."""
    texts = [line if isinstance(line, bytes) else line.encode() if isinstance(line, str) else json.dumps(line).encode()
             for line in lines]
    (directory / records.RECORD).write_bytes(b'\n'.join(texts) + end.encode())
    return directory


def test_a_record_is_read_as_it_was_written(tmp_path, capsys):
    assert records.read(tmp_path) == [] and records.read(tmp_path / 'absent') == []
    assert records.read(written(tmp_path, GOOD)) == records.intact(tmp_path) == GOOD
    assert not capsys.readouterr().err


@pytest.mark.parametrize('end', ['{', '{"step": 4, "lo', '{"step": 4, "loss": 2.', '{"step": 4, "loss": 2.3}'])
def test_a_line_cut_by_a_kill_is_dropped_in_silence(tmp_path, capsys, end):
    whole = [{'step': 4, 'loss': 2.3}] if end.endswith('}') else []
    assert records.read(written(tmp_path, GOOD, f'\n{end}')) == records.intact(tmp_path) == GOOD + whole
    assert not capsys.readouterr().err


@pytest.mark.parametrize('line, fault', [
    (b'\xff\xfe', 'not UTF-8 at byte 0'), (b'\0' * 9, 'no JSON'), ('{"step": 2, "lo', 'no JSON'), ('3', 'it is int'),
    ('null', 'it is NoneType'), ('[]', 'it is list'), ('[' * 9999, 'nested over'), ('{"loss": 1.0}', 'step is None'),
    ('{"step": true}', 'step is True'), ('{"step": 2.0}', 'step is 2.0'), ('{"step": -1}', 'step is -1'),
    ('{"step": "2"}', 'step is 2'), (f'{{"step": {2 ** 60}}}', f'step is {2 ** 60}'),
    ('{"step": ' + '9' * 99, '99 digits'),
    ('{"step": 2, "offset": 1.5}', 'offset is 1.5'), ('{"step": 2, "offset": -1}', 'offset is -1'),
    ('{"step": 9, "loss": 1.0}', 'step 9 is out of order'), ('{"step": 1, "loss": 2.0}', 'step 1 is out of order'),
    ('{"step": 2, "loss": 2.7}', 'step 2 is there twice')])
def test_a_line_that_is_no_record_is_left_out_with_its_number(tmp_path, capsys, line, fault):
    # Of what is there twice the last counts, here the good one.
    lines = [GOOD[0], line, *GOOD[1:]] if 'twice' in fault else [*GOOD[:3], line, *GOOD[3:]]
    number = lines.index(line) + 1
    assert records.read(written(tmp_path, lines)) == GOOD
    assert records.read(tmp_path) == GOOD
    shown = capsys.readouterr().err
    assert shown.startswith(f'lm: {tmp_path}/metrics.jsonl: line {number}: ') and fault in shown
    assert shown.count('\n') == 1 and len(shown) < 400 + len(str(tmp_path))
    with pytest.raises(config.Error, match=f'metrics.jsonl is damaged .line {number}: .*repair the lines'):
        records.intact(tmp_path)


@pytest.mark.parametrize('value', ['"2.4"', '[]', '{}', 'true'])
def test_a_value_that_is_no_number_counts_as_not_finite(tmp_path, capsys, value):
    lines = [*GOOD[:3], f'{{"step": 3, "loss": {value}, "rate": 0.1}}']
    assert records.read(written(tmp_path, lines)) == [*GOOD[:3], {'step': 3, 'loss': None, 'rate': 0.1}]
    assert 'line 4: loss is no number' in capsys.readouterr().err


@pytest.mark.parametrize('value', ['NaN', 'Infinity', '-Infinity', '1e400', 'null'])
def test_a_number_that_is_not_finite_is_none(tmp_path, value):
    assert records.read(written(tmp_path, [f'{{"step": 3, "loss": {value}}}'])) == [{'step': 3, 'loss': None}]


def test_many_damaged_lines_are_one_warning_with_their_count(tmp_path, capsys):
    records.read(written(tmp_path, [*GOOD, *['?'] * 700]))
    assert '700 lines, 5, 6, 7, 8, 9, ...: no JSON' in capsys.readouterr().err


def test_two_offsets_at_one_step_are_two_rollbacks(tmp_path):
    rows = [GOOD[0], {'step': 1, 'offset': 2}, {'step': 1, 'offset': 4}, *GOOD[1:]]
    assert records.intact(written(tmp_path, rows)) == rows
    assert records.offset(rows, 0) == 0 and records.offset(rows, 1) == 4


def test_rewinding_keeps_what_it_cannot_read_aside_and_every_byte_of_the_rest(tmp_path, capsys):
    first, odd = '{"loss":3.00,"step": 1}', '{"step": 2, "note": "mine"}'
    written(tmp_path, [first, b'\xff', odd, {'step': 3, 'loss': 2.0}, 'zzz'], '\n{"step": 4')
    records.rewind(tmp_path, 2)
    assert (tmp_path / records.RECORD).read_text() == f'{first}\n{odd}\n'
    assert (tmp_path / records.DAMAGED).read_bytes() == b'\xff\nzzz\n'
    fault = f'{tmp_path}/metrics.jsonl: 2 lines, 2, 5: not UTF-8 at byte 0; moved to metrics.jsonl.damaged.'
    assert capsys.readouterr().err == f'lm: {fault}\n'
    written(tmp_path, [first, 'again'])
    records.rewind(tmp_path, 0)
    assert (tmp_path / records.RECORD).read_bytes() == b''
    assert (tmp_path / records.DAMAGED).read_bytes() == b'\xff\nzzz\nagain\n'


@pytest.mark.parametrize('obstacle', [damage.directory, damage.fifo, damage.loop])
@pytest.mark.parametrize('name', [records.RECORD, records.DAMAGED])
def test_what_is_no_file_is_one_line(tmp_path, obstacle, name):
    written(tmp_path, [*GOOD, '?'])
    obstacle(tmp_path / name)
    for call in [lambda: records.rewind(tmp_path, 2)] + [lambda: records.read(tmp_path)] * (name == records.RECORD):
        with pytest.raises(config.Error, match='cannot (read|write to) '):
            call()
    assert name == records.RECORD or records.read(tmp_path) == GOOD


def test_a_disk_that_is_full_while_rewinding_is_one_line_and_loses_nothing(tmp_path, monkeypatch):
    def replace(path, content):
        raise OSError(28, 'No space left on device')
    written(tmp_path, [*GOOD, '?'])
    before = (tmp_path / records.RECORD).read_bytes()
    monkeypatch.setattr(records.files, 'replace', replace)
    with pytest.raises(config.Error, match=f'cannot write to {tmp_path}: No space left on device; free some space'):
        records.rewind(tmp_path, 1)
    assert (tmp_path / records.RECORD).read_bytes() == before


def test_no_flipped_bit_of_a_sealed_record_goes_unnoticed(tmp_path, capsys):
    content = b''.join(files.sealed(json.dumps(record)).encode() + b'\n' for record in GOOD)
    path = tmp_path / records.RECORD
    for place in range(8 * len(content)):
        flipped = bytearray(content)
        flipped[place // 8] ^= 1 << place % 8
        path.write_bytes(flipped)
        files.warn.cache_clear()
        read = records.read(tmp_path)
        assert read != GOOD and capsys.readouterr().err.startswith(f'lm: {path}: '), place
    path.write_bytes(content)
    assert records.read(tmp_path) == GOOD and not capsys.readouterr().err


def test_a_change_within_a_tick_of_the_clock_is_seen(tmp_path, monkeypatch):
    """A file that is written again in place has the same inode, size and, within a tick, times."""
    path = written(tmp_path, GOOD) / records.RECORD
    real, times = os.stat, os.stat(path)
    frozen = types.SimpleNamespace(st_ino=times.st_ino, st_size=times.st_size, st_mtime_ns=times.st_mtime_ns,
                                   st_ctime_ns=times.st_ctime_ns)
    monkeypatch.setattr(checksums.os, 'stat', lambda place, *rest: frozen if place == path else real(place, *rest))
    trial = trials.Trial('a', {}, sweeps.SETTINGS, tmp_path)
    assert trials.progress(trial) == (3, {2: 2.6})
    path.write_bytes(path.read_bytes().replace(b'2.6', b'2.7'))
    assert trials.progress(trial) == (3, {2: 2.7})
    monkeypatch.setattr(checksums, 'SETTLED', -10 ** 12)  # as if it had not changed for long: it is not read again
    assert trials.progress(trial) == (3, {2: 2.7})
    path.write_bytes(path.read_bytes().replace(b'2.7', b'2.8'))
    assert trials.progress(trial) == (3, {2: 2.7})
