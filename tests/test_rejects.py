"""What a source rejects: reported by reason and place, counted as a share of bytes, and told in one line."""
import gzip
import json

import pytest

from lm import config, data
from lm.data import cache


def test_rejects_are_reported_by_reason_with_the_first_places(tmp_path):
    lines = [b'{"text": "good"}', *[b'broken'] * 7, b'{"body": 1}']
    (tmp_path / 'a.jsonl').write_bytes(b'\n'.join(lines))
    built = cache.build(data.Files(str(tmp_path / 'a.jsonl')), data.Bytes().fit((), '.'), tmp_path)
    rejects = built.report['rejects']
    assert rejects['broken JSON']['count'] == 7
    assert rejects['broken JSON']['places'] == [f'{tmp_path}/a.jsonl:{number}' for number in range(2, 7)]
    assert rejects["no field 'text'"] == {'count': 1, 'places': [f"{tmp_path}/a.jsonl:9 (has 'body')"], 'bytes': 11,
                                          'unsized': 0}
    assert built.report['documents'] == 1
    assert built.rejected == (7 * 6 + 11) / (7 * 6 + 11 + 4)
    assert cache.summary([built, built]) == ("2 documents, 8 bytes, rejected: 14 x broken JSON, 2 x no field 'text' "
                                             '(`lm data` shows where)')


def accepted(content, root, **changes):
    """Returns the line of `lm train` on a file of a name and some bytes, {name: bytes}; may raise config.Error."""
    for name, stored in content.items():
        (root / name).write_bytes(stored)
    corpus = data.Corpus(train=data.Files(tuple(str(root / name) for name in content)), valid=None,
                         tokenizer=data.Bytes(), context=8, batch=2, **changes)
    return corpus.accept(corpus.open(root / 'cache'))


def test_documents_with_another_field_name_are_refused_until_allowed(tmp_path):
    lines = [json.dumps({'text' if number % 24 == 0 else 'content': f'document {number}'}) for number in range(2400)]
    content = {'a.jsonl': '\n'.join(lines).encode()}
    with pytest.raises(config.Error, match=r"^98\.\d% of a \(train\) is rejected: 2,300 x no field 'text', first at .*"
                                           r"a\.jsonl:2 \(has 'content'\); .* data\.max_rejected=0\.99\.$"):
        accepted(content, tmp_path)
    assert accepted(content, tmp_path, max_rejected=0.99) == (
        "train: 100 documents, 1,252 bytes, rejected: 2,300 x no field 'text' (`lm data` shows where)")


def test_lines_in_latin_1_are_refused_by_their_share_of_the_text(tmp_path):
    lines = [f'line {number} of a text'.encode() for number in range(2000)]
    lines[::5] = [f'lïne {number} öf ä tëxt'.encode('latin-1') for number in range(400)]
    with pytest.raises(config.Error, match=r'^18\.6% of a \(train\) is rejected: 400 x not valid UTF-8, first at'):
        accepted({'a.txt': b'\n'.join(lines)}, tmp_path)
    line = accepted({'a.txt': b'\n'.join([*lines[1:5] * 4000, *lines])}, tmp_path)
    assert line.startswith('train: 1 documents, ') and 'rejected: 400 x not valid UTF-8' in line


def test_a_file_of_many_documents_that_breaks_is_refused_by_its_size(tmp_path):
    lines = b''.join(json.dumps({'text': f'{number ** 9}'}).encode() + b'\n' for number in range(2000))
    packed, name = gzip.compress(lines), f'{tmp_path}/b.jsonl.gz'
    told = fr'^\d\d\.\d% of a \(train\) is rejected: 1 x broken gz stream, first at {name}:\d'
    with pytest.raises(config.Error, match=told):
        accepted({'a.jsonl': lines, 'b.jsonl.gz': packed[:-2000]}, tmp_path)
    with pytest.raises(config.Error, match=fr'first at {name}:2001;'):
        accepted({'a.jsonl': lines, 'b.jsonl.gz': packed[:-8] + bytes(4) + packed[-4:]}, tmp_path)


def test_a_parquet_file_without_the_column_counts_with_its_size(tmp_path):
    pa = pytest.importorskip('pyarrow')
    import pyarrow.parquet
    for name in 'text', 'body':
        pyarrow.parquet.write_table(pa.table({name: [f'{number ** 9}' for number in range(2000)]}), tmp_path / name)
    content = {f'{name}.parquet': (tmp_path / name).read_bytes() for name in ('text', 'body')}
    with pytest.raises(config.Error, match=r"^5\d\.\d% of text \(train\) is rejected: 1 x no field 'text'"):
        accepted(content, tmp_path)


def built_of(source, root):
    return cache.build(source, data.Bytes().fit((), '.'), root)


def test_the_rejected_share_is_of_bytes(tmp_path):
    """One document of many good lines and 30 bad ones: of the bytes a hundredth, of `documents` nearly all."""
    (tmp_path / 'a.txt').write_bytes(b'a good line\n' * 1000 + b'\xff23\n' * 30)
    built = built_of(data.Files(str(tmp_path / 'a.txt')), tmp_path)
    assert built.report['bytes'] == 12_000 and built.rejected == 90 / 12_090


def test_the_rejected_share_is_of_documents_where_sizes_are_unknown(tmp_path):
    pa = pytest.importorskip('pyarrow')
    import pyarrow.parquet
    pyarrow.parquet.write_table(pa.table({'text': ['long ' * 100, None, 'b', 'c', None]}), tmp_path / 'a.parquet')
    assert built_of(data.Files(str(tmp_path / 'a.parquet')), tmp_path).rejected == 2 / 5


def test_the_rejected_share_of_a_part_is_about_that_of_the_whole(tmp_path):
    lines = [json.dumps({'text': f'number {number:05}'}) if number % 10 else 'broken ' * 4 for number in range(2000)]
    (tmp_path / 'a.jsonl').write_text('\n'.join(lines))
    whole = data.Files(str(tmp_path / 'a.jsonl'))
    share = built_of(whole, tmp_path).rejected
    assert share == 200 * 28 / (200 * 28 + 1800 * 12)
    half = data.Pick(whole, 0.0, 0.5)
    for part in (half, data.Pick(whole, 0.9, 1.0), data.Cut(whole, 0.5, 0.75), data.Cut(half, 0.5, 1.0)):
        assert built_of(part, tmp_path).rejected == pytest.approx(share, rel=0.1)


def test_a_part_takes_its_share_of_rejects_of_unknown_size(tmp_path):
    class Lost(data.Synthetic):
        def records(self):
            for number, document in enumerate(super().records()):
                yield document if number % 4 else data.Reject('lost', str(number))

    assert built_of(data.Pick(Lost(2000, 20), 0.95, 1.0), tmp_path).rejected == pytest.approx(0.25, abs=0.05)


JSON_LINES = 'write one JSON object a line (jq -c . does), or rename them to end in .txt to read them as text'
NO_TEXT = {
    'another field': (b'{"id": 7, "question": "q"}\n' * 9,
                      "9 x no field 'text', first at FILE:1 (has 'question', 'id')",
                      "name the field that holds the text, as in data.Files(field='question')"),
    'null': (b'{"text": null}\n' * 3 + b'{"body": 1}\n',
             "3 x field 'text' is null, first at FILE:1; 1 x no field 'text', first at FILE:4 (has 'body')",
             'mend the files'),
    'CSV': (b'id,text\n1,one\n2,two\n', "3 x broken JSON, first at FILE:1 (begins 'id,text')", JSON_LINES),
    'objects on many lines': (b'{\n "text": "a"\n}\n' * 2, '6 x broken JSON, first at FILE:1', JSON_LINES),
    'Latin-1': ('{"text": "Grüße"}\n'.encode('latin-1') * 3, '3 x not valid UTF-8, first at FILE:1',
                'convert them to UTF-8, as by iconv -f LATIN1 -t UTF-8'),
}


@pytest.mark.parametrize('kind', NO_TEXT)
def test_what_helps_is_told_by_why_there_is_no_text(kind, tmp_path):
    content, fact, remedy = NO_TEXT[kind]
    (tmp_path / 'a.jsonl').write_bytes(content)
    with pytest.raises(config.Error) as error:
        built_of(data.Files(str(tmp_path / 'a.jsonl')), tmp_path)
    message = f'a has no usable text ({fact}); {remedy}, or choose others.'
    assert str(error.value) == message.replace('FILE', f'{tmp_path}/a.jsonl')


def test_a_field_that_is_named_and_a_file_that_is_renamed_are_read(tmp_path):
    (tmp_path / 'a.jsonl').write_bytes(NO_TEXT['another field'][0])
    assert [doc.text for doc in data.Files(str(tmp_path / 'a.jsonl'), field='question').documents()] == ['q'] * 9
    (tmp_path / 'a.txt').write_bytes(NO_TEXT['CSV'][0])
    assert [doc.text for doc in data.Files(str(tmp_path / 'a.txt')).documents()] == ['id,text\n1,one\n2,two\n']


@pytest.mark.parametrize('indent', [None, 1])
@pytest.mark.parametrize('value', [[{'text': 'a'}, {'text': 'b'}, {'text': None}], {'text': 'a'}])
def test_a_list_and_one_object_are_read_from_jsonl_too(value, indent, tmp_path):
    (tmp_path / 'a.jsonl').write_text('\ufeff' + json.dumps(value, indent=indent))
    records = list(data.Files(str(tmp_path / 'a.jsonl')).records())
    assert [record.text for record in records[:2]] == ['a', 'b'][:len(value)]
    assert [(record.reason, record.place) for record in records[2:]] == [
        ("field 'text' is null", f'{tmp_path}/a.jsonl:3')] * (len(value) == 3)
