"""What a source rejects: reported by reason and place, counted as a share of bytes, and told in one line."""
import json

import pytest

from lm import data
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
