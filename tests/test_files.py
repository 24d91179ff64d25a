"""Files: every format, plain and compressed; what is bad is reported and the rest is used."""

import gzip
import json
import os
import time
import zlib

import numpy as np
import pytest

from lm import config, data
from lm.config import checksums
from lm.data import identity, streams


def texts(source):
    return [document.text for document in source.documents()]


def rejects(source):
    found = [record for record in source.records() if isinstance(record, data.Reject)]
    return [(reject.reason, reject.place.rpartition('/')[2]) for reject in found]


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def zstd(content):
    pa = pytest.importorskip('pyarrow')
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, 'zstd') as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


def test_a_text_file_is_one_document_byte_for_byte(tmp_path):
    content = 'one\r\ntwo\x85three\u2028four\x0b\x0c\n\n \ttail'
    source = data.Files(write(tmp_path / 'a.txt', content))
    assert texts(source) == [content]


@pytest.mark.parametrize('suffix, pack', [('', bytes), ('.gz', gzip.compress), ('.zst', zstd)])
def test_every_format_reads_the_same_plain_and_compressed(tmp_path, suffix, pack):
    pa = pytest.importorskip('pyarrow')
    import pyarrow.parquet
    wanted = ['erste\u2028Zeile', 'zwei\n\x85', '三']
    pyarrow.parquet.write_table(pa.table({'id': [1, 2, 3], 'text': wanted}), tmp_path / 'table')
    lines = ''.join(json.dumps({'text': value}, ensure_ascii=False) + '\n' for value in wanted).encode()
    write(tmp_path / f'a.jsonl{suffix}', pack(lines))
    write(tmp_path / f'a.parquet{suffix}', pack((tmp_path / 'table').read_bytes()))
    write(tmp_path / f'a.md{suffix}', pack(wanted[1].encode()))
    assert texts(data.Files(str(tmp_path / f'a.jsonl{suffix}'))) == wanted
    assert texts(data.Files(str(tmp_path / f'a.parquet{suffix}'))) == wanted
    assert texts(data.Files(str(tmp_path / f'a.md{suffix}'))) == [wanted[1]]


def test_globs_are_sorted_and_deduplicated(tmp_path, monkeypatch):
    for name in ('b/2.txt', 'a/1.txt', 'a/c/3.txt'):
        write(tmp_path / 'text' / name, name)
    monkeypatch.chdir(tmp_path)
    assert texts(data.Files('./text/**/*.txt')) == ['a/1.txt', 'a/c/3.txt', 'b/2.txt']
    assert texts(data.Files(('./text/b/*', './text/**/*.txt'))) == ['b/2.txt', 'a/1.txt', 'a/c/3.txt']
    monkeypatch.setenv('HOME', str(tmp_path))
    assert texts(data.Files('~/text/b/*')) == ['b/2.txt']


@pytest.mark.parametrize('pattern, label', [
    ('x/wiki.txt.gz', 'wiki'), ('x/wiki/*.jsonl', 'wiki'), ('wiki/**/part-*.txt', 'wiki'), ('*.txt', 'files')])
def test_the_label_is_the_last_plain_part_of_the_pattern(pattern, label):
    assert data.Files(pattern).label == label


def test_remote_files_go_through_fsspec():
    fsspec = pytest.importorskip('fsspec')
    system = fsspec.filesystem('memory')
    for name, content in ('a.txt', b'one'), ('b.txt.gz', gzip.compress(b'two')):
        system.pipe(f'/bucket/{name}', content)
    source = data.Files('memory://bucket/*')
    assert texts(source) == ['one', 'two']
    assert source.fingerprint() == data.Files('memory://bucket/*').fingerprint()
    with pytest.raises(config.Error, match='no file matches'):
        texts(data.Files('memory://bucket/*.parquet'))
    with pytest.raises(config.Error, match='cannot read'):
        texts(data.Files('nowhere://bucket/*.parquet'))


def test_no_match_names_the_nearest_directory_and_its_entries(tmp_path):
    write(tmp_path / 'corpus' / 'a.text', 'x')
    with pytest.raises(config.Error) as error:
        texts(data.Files(f'{tmp_path}/corpus/deep/er/*.txt'))
    assert f'{tmp_path}/corpus, holds a.text' in str(error.value) and '\n' not in str(error.value)


def test_a_file_that_cannot_be_opened_is_one_line(tmp_path, monkeypatch):
    source = data.Files(write(tmp_path / 'a.txt', 'x'))
    [file] = source.files()
    (tmp_path / 'a.txt').unlink()
    monkeypatch.setattr(data.Files, 'files', lambda self: [file])
    with pytest.raises(config.Error, match='cannot read .*a.txt: No such file'):
        texts(source)


def test_bad_lines_of_a_text_are_left_out_and_counted(tmp_path):
    source = data.Files(write(tmp_path / 'a.txt', b'good\nbad \xff\nNUL \0\nlast\nend\n'))
    assert texts(source) == ['good\nlast\nend\n']
    assert rejects(source) == [('not valid UTF-8', 'a.txt:2'), ('NUL character', 'a.txt:3')]


def test_a_text_in_another_encoding_gives_no_document(tmp_path):
    source = data.Files(write(tmp_path / 'a.txt', 'Grüße\nübrig\n'.encode('latin-1')))
    assert texts(source) == [] and [reason for reason, _ in rejects(source)] == ['not valid UTF-8'] * 2


def test_bad_records_of_jsonl_are_counted_by_reason_and_the_rest_is_used(tmp_path):
    lines = [b'{"text": "one"}', b'{"text": ', b'{"body": "x"}', b'[1]', b'{"text": 5}', b'{"text": "\xff"}',
             b'{"text": "a\\u0000"}', b'{"text": "\\ud800"}', b'', b'{"text": "two"}', b'{"text": ""}',
             b'{"text": "three"}']
    source = data.Files(write(tmp_path / 'a.jsonl', b'\n'.join(lines)))
    assert texts(source) == ['one', 'two', 'three']
    assert rejects(source) == [
        ('broken JSON', 'a.jsonl:2'), ("no field 'text'", "a.jsonl:3 (has 'body')"), ('no JSON object', 'a.jsonl:4'),
        ('int instead of text', 'a.jsonl:5'), ('not valid UTF-8', 'a.jsonl:6'), ('NUL character', 'a.jsonl:7'),
        ('lone surrogate', 'a.jsonl:8'), ('empty document', 'a.jsonl:11')]


JSON = {
    'lines': lambda values: '\n'.join(map(json.dumps, values)),
    'lines with blanks around them': lambda values: '\ufeff' + '\r\n \n'.join(map(json.dumps, values)) + '\n\n',
    'a list on one line': json.dumps,
    'a list on many lines': lambda values: '\n\n' + json.dumps(values, indent=2) + '\n',
}


@pytest.mark.parametrize('suffix, pack', [('', bytes), ('.gz', gzip.compress), ('.zst', zstd)])
@pytest.mark.parametrize('form', JSON)
def test_json_is_read_by_its_content(tmp_path, form, suffix, pack):
    """C4 and Dolma publish JSON lines as .json.gz."""
    values = [{'text': 'eins\n{', 'url': 'x'}, {'text': 'zwei'}, {'body': 'x'}, 5, {'text': 'drei', 'deep': [{}]}]
    source = data.Files(write(tmp_path / f'c4.00000-of-01024.json{suffix}', pack(JSON[form](values).encode())))
    assert texts(source) == ['eins\n{', 'zwei', 'drei']
    assert [reason for reason, _ in rejects(source)] == ["no field 'text'", 'no JSON object']
    assert all(record.size > 0 for record in source.records() if isinstance(record, data.Reject))


@pytest.mark.parametrize('indent', [None, 2])
def test_one_json_object_is_one_document(tmp_path, indent):
    source = data.Files(write(tmp_path / 'a.json', json.dumps({'id': {'a': 1}, 'text': 'all of it'}, indent=indent)))
    assert texts(source) == ['all of it'] and rejects(source) == []


def test_json_lines_whose_first_is_broken_keep_the_others(tmp_path):
    source = data.Files(write(tmp_path / 'a.json', '{"text": "cut o\n{"text": "one"}\n{"text": "two"}\n'))
    assert texts(source) == ['one', 'two'] and rejects(source) == [('broken JSON', 'a.json:1')]


@pytest.mark.parametrize('content, found', [
    (b'', [('empty file', 'a.json')]), (b' \n', []), (b'{', [('broken JSON', 'a.json:1')]),
    (b'[{"text": "a"},\n', [('broken JSON', 'a.json:2')]),
    (b'{\n"text": 1,\n', [('broken JSON', 'a.json:1'), ('broken JSON', 'a.json:2')]),
    (b'["a"]\n["b"]\n', [('broken JSON', 'a.json:2')]), (b'[{"text": "\xff"}]', [('broken JSON', 'a.json:1')]),
    (b'["a"]', [('no JSON object', 'a.json:1')]), (b'[' * 100_000, [('broken JSON', 'a.json:1')])])
def test_json_that_holds_no_document(tmp_path, content, found):
    source = data.Files(write(tmp_path / 'a.json', content))
    assert texts(source) == [] and rejects(source) == found


@pytest.mark.parametrize('content, first', [('Once upon', 'O'), ('"text"', '"'), ('\x7f', '\x7f'), ('17', '1')])
def test_a_json_file_that_is_none_is_refused_in_one_line(tmp_path, content, first):
    path = write(tmp_path / 'a.json', content)
    with pytest.raises(config.Error) as error:
        texts(data.Files(path))
    assert str(error.value) == (f'{path} holds no JSON objects: it begins with {first!r}; leave it out of the pattern, '
                                'or rename it to end in .txt to read it as text.')


def test_a_broken_stream_of_json_is_reported(tmp_path):
    lines = '\n'.join(json.dumps({'text': f'{number ** 9}'}) for number in range(20_000))
    packed = gzip.compress(lines.encode())
    source = data.Files(write(tmp_path / 'a.json.gz', packed[:len(packed) // 2]))
    assert texts(source) == [] and [reason for reason, _ in rejects(source)] == ['broken gz stream']


def test_the_fingerprint_of_small_files_is_as_it_was_but_for_json_that_was_read_as_text(tmp_path):
    """A token cache is named by it, and a run that is resumed compares it."""
    for suffix in ('json', 'jsonl', 'txt'):
        source = data.Files(write(tmp_path / f'a.{suffix}', '{"text": "a"}'))
        before = config.fingerprint(['files', 'text', 2 ** 25, [[f'a.{suffix}', 13, zlib.crc32(b'{"text": "a"}')]]])
        assert (source.fingerprint() == before) == (suffix != 'json')


def test_a_line_of_100_megabytes_is_read_whole(tmp_path):
    """text8 is one line of 100 MB."""
    long = 'zig zag ' * 12_500_000
    source = data.Files((write(tmp_path / 'a.jsonl', f'{{"text": "one"}}\n{{"text": "{long}"}}\n{{"text": "two"}}\n'),
                         write(tmp_path / 'text8', long)))
    assert texts(source) == ['one', long, 'two', long] and rejects(source) == []


@pytest.mark.parametrize('suffix, pack', [('gz', gzip.compress), ('zst', zstd)])
def test_a_compressed_stream_that_breaks_gives_no_document(tmp_path, suffix, pack):
    numbers = np.random.default_rng(0).integers(0, 10 ** 9, 40_000)
    lines = [json.dumps({'text': str(number)}) for number in numbers]
    packed = pack('\n'.join(lines).encode())
    source = data.Files(write(tmp_path / f'a.jsonl.{suffix}', packed[:len(packed) * 3 // 4]))
    [reject] = source.records()
    assert reject.reason == f'broken {suffix} stream' and reject.size > len(packed) / 2
    assert 1_000 < int(reject.place.rpartition(':')[2]) < 40_000
    garbage = data.Files(write(tmp_path / f'b.txt.{suffix}', b'this is not compressed at all'))
    with pytest.raises(config.Error, match=rf'b\.txt\.{suffix} is plain text; rename it to end without \.{suffix}, or'):
        texts(garbage)


def test_parquet_faults_are_reported(tmp_path):
    pa = pytest.importorskip('pyarrow')
    import pyarrow.parquet
    table = pa.table({'text': pa.array([b'one', None, b'\xff', b'two'], pa.binary()), 'n': [1, 2, 3, 4]})
    pyarrow.parquet.write_table(table, tmp_path / 'a.parquet')
    source = data.Files(str(tmp_path / 'a.parquet'))
    assert texts(source) == ['one', 'two']
    assert rejects(source) == [('missing field', 'a.parquet:2'), ('not valid UTF-8', 'a.parquet:3')]
    numbers = data.Files(str(tmp_path / 'a.parquet'), field='n')
    assert texts(numbers) == [] and rejects(numbers)[3] == ('int instead of text', 'a.parquet:4')
    missing = data.Files(str(tmp_path / 'a.parquet'), field='body')
    assert rejects(missing) == [("no field 'body'", "a.parquet (has 'text', 'n')")]
    broken = data.Files(write(tmp_path / 'b.parquet', (tmp_path / 'a.parquet').read_bytes()[:-20]))
    assert rejects(broken) == [('broken parquet file', 'b.parquet:1')]


def test_fingerprint_follows_content_not_place_or_date(tmp_path):
    first = data.Files(write(tmp_path / 'x' / 'a.txt', 'same'))
    moved = data.Files(write(tmp_path / 'y' / 'z' / 'a.txt', 'same'))
    edited = data.Files(write(tmp_path / 'w' / 'a.txt', 'sane'))
    assert first.fingerprint() == moved.fingerprint() != edited.fingerprint()


@pytest.mark.parametrize('place', [0, 10_000, 2 ** 20, 3 * 2 ** 20 - 1])
def test_the_digest_of_large_files_covers_every_byte(tmp_path, place, monkeypatch):
    monkeypatch.setenv('LM_CACHE', str(tmp_path / 'cache'))
    content = np.random.default_rng(0).integers(0, 256, 3 * 2 ** 20, np.uint8)
    path = write(tmp_path / 'a.txt', content.tobytes())
    before = identity.digest([streams.File(path)], small=0)
    assert before == identity.digest([streams.File(write(tmp_path / 'b' / 'a.txt', content.tobytes()))], small=0)
    content[place] ^= 1
    write(tmp_path / 'a.txt', content.tobytes())
    assert identity.digest([streams.File(path)], small=0) != before


def test_a_change_in_place_is_seen_whatever_tools_do_to_its_date(tmp_path, monkeypatch):
    monkeypatch.setenv('LM_CACHE', str(tmp_path / 'cache'))
    monkeypatch.setattr(checksums, 'SETTLED', 10 ** 7)
    monkeypatch.setattr(identity, '_known', {})
    path = write(tmp_path / 'a.txt', b'a name in a text')
    os.utime(path, (1e9, 1e9))
    time.sleep(0.05)
    reads = count_reads(monkeypatch)
    before = identity.digest([streams.File(path)], small=0)
    monkeypatch.setattr(identity, '_known', {})  # another process
    assert identity.digest([streams.File(path)], small=0) == before and reads == [path]
    write(tmp_path / 'a.txt', b'a mask in a text')
    os.utime(path, (1e9, 1e9))
    assert identity.digest([streams.File(path)], small=0) != before and reads == [path] * 2
    [record] = (tmp_path / 'cache').iterdir()
    record.write_text(record.read_text().replace('text', 'tezt'))
    assert identity.digest([streams.File(path)], small=0)[0][2] == checksums.of_file(path)


def count_reads(monkeypatch):
    """Returns a list to which the path of every file is added whose checksum is computed."""
    reads, checksum = [], checksums.checksum
    monkeypatch.setattr(checksums, 'checksum', lambda stream: reads.append(stream.name) or checksum(stream))
    return reads


def test_python_stdlib_is_shuffled_complete_and_the_same_twice():
    source = data.PythonStdlib()
    records = list(source.records())
    documents = [record for record in records if isinstance(record, data.Document)]
    assert len(documents) > 300 and {document.source for document in documents} == {'python-stdlib'}
    assert any('def namedtuple' in document.text for document in documents)
    assert records == list(data.PythonStdlib().records())
    assert source.fingerprint() == data.PythonStdlib().fingerprint()


def test_real_files_are_read_in_full(shared):
    [text] = texts(data.Files(str(shared / 'wikitext2' / 'train.txt.gz')))
    assert len(text.encode()) == 10_797_148
    novels = texts(data.Files(str(shared / 'chinese_novels' / '*.txt.gz')))
    assert [len(novel.encode()) for novel in novels] == [2_517_394, 1_791_669, 2_566_260, 1_992_520]
    questions = data.Files(str(shared / 'gsm8k' / 'test.jsonl.gz'), field='question')
    assert len(texts(questions)) == 1319 and rejects(questions) == []
