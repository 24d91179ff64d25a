"""The folder of data sets: what a path in an experiment stands for, and that no run depends on where the folder is."""

import dataclasses
import gzip
import hashlib
import os
import pathlib
import re

import pytest

from lm import config, data
from lm.config import paths
from lm.data import cache


@pytest.mark.parametrize('path, place', [
    ('books/a.txt', '/sets/books/a.txt'), ('a.txt', '/sets/a.txt'), ('.hidden/a', '/sets/.hidden/a'),
    ('**/*.txt', '/sets/**/*.txt'), ('/books/a.txt', '/books/a.txt'), ('./a.txt', './a.txt'), ('../a.txt', '../a.txt'),
    ('gs://bucket/a', 'gs://bucket/a'), ('~/a', '/home/me/a')])
def test_relative_paths_are_under_lm_data_and_others_stand_for_themselves(path, place, monkeypatch):
    monkeypatch.setenv('HOME', '/home/me')
    monkeypatch.setenv('LM_DATA', '/sets')
    assert paths.locate(path) == place


@pytest.mark.parametrize('folder, place', [
    (None, 'data/a'), ('', 'data/a'), ('sets', 'sets/a'), ('~/sets', '/home/me/sets/a'),
    ('gs://bucket/sets', 'gs://bucket/sets/a')])
def test_lm_data_is_a_folder_or_a_bucket(folder, place, monkeypatch):
    monkeypatch.setenv('HOME', '/home/me')
    monkeypatch.delenv('LM_DATA', raising=False)
    if folder is not None:
        monkeypatch.setenv('LM_DATA', folder)
    assert paths.locate('a') == place


def test_files_are_found_under_lm_data_or_explicitly_in_the_current_directory(tmp_path, monkeypatch):
    for folder in ('here', 'sets [1]', 'here/data'):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / 'a.txt').write_text(folder)
    monkeypatch.chdir(tmp_path / 'here')
    for value, text in (('../sets [1]', 'sets [1]'), ('', 'here/data')):
        monkeypatch.setenv('LM_DATA', value)
        assert [document.text for document in data.Files('a.*').documents()] == [text]
        assert [document.text for document in data.Files('./a.txt').documents()] == ['here']


def test_files_are_found_in_a_bucket_that_lm_data_names(monkeypatch):
    pytest.importorskip('fsspec').filesystem('memory').pipe('/sets/books/a.txt', b'one')
    monkeypatch.setenv('LM_DATA', 'memory://sets')
    assert [document.text for document in data.Files('books/*.txt').documents()] == ['one']
    with pytest.raises(config.Error, match='; looked for memory://sets/x.txt: check the bucket'):
        data.Files('x.txt').files()
    with pytest.raises(config.Error, match='read from a local disk, not from memory://sets/x.json; copy it and give'):
        data.HuggingFace('x.json').fit((), '.')


class Refused(Exception):
    """What the library of a store raises, of a kind of its own."""


@pytest.mark.parametrize('method, needs', [('glob', '; s3:// needs s3fs, gs:// needs gcsfs.'), ('isfile', 's3fs'),
                                           ('size', '; check its permissions, or leave it out of the pattern.'),
                                           ('open', 'check its permissions'), ('info', 'cannot read')])
@pytest.mark.parametrize('kind', [Refused, PermissionError, TimeoutError, KeyError])
def test_what_a_remote_store_refuses_is_one_line(method, needs, kind, monkeypatch):
    system = pytest.importorskip('fsspec').filesystem('memory')
    system.pipe('/refused/a.txt', b'one')

    def refuse(*args, **options):
        raise kind('403 Forbidden\n<html>')
    with monkeypatch.context() as patch:
        patch.setattr(type(system), method, refuse)
        source = data.Files('memory://refused/*')
        with pytest.raises(config.Error, match='^cannot read .*refused/.*: .*403 Forbidden') as error:
            source.fingerprint() if method == 'info' else list(source.records())
    assert '\n' not in str(error.value) and needs in str(error.value)
    assert [document.text for document in source.documents()] == ['one']


TEXTS = [document.text for document in data.Synthetic(count=20, length=500).documents()]


@dataclasses.dataclass(frozen=True)
class Run:
    """A run as it is recorded, with a tokenizer that is a file."""
    data: data.Corpus


def test_moving_the_data_changes_neither_a_fingerprint_nor_a_cache_nor_the_record(tmp_path, monkeypatch):
    data.SentencePiece(size=300).fit(TEXTS, tmp_path)
    model = (tmp_path / 'sentencepiece.model').read_bytes()
    text, tokenizer = data.Files('a.txt'), data.SentencePiece(model='b.model')
    run = Run(data.Corpus(train=text, valid=None, tokenizer=tokenizer, context=4, batch=1))
    results = []
    for folder in ('one', 'two'):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / 'a.txt').write_text('to be or not to be')
        (tmp_path / folder / 'b.model').write_bytes(model)
        monkeypatch.setenv('LM_DATA', str(tmp_path / folder))
        encoder, [built] = cache.prepare(text, tokenizer, tmp_path / 'caches')
        results.append((text.fingerprint(), cache.home(text, tokenizer, tmp_path), encoder.fingerprint(),
                        built.directory, config.dump(run), config.fingerprint(run)))
    assert results[0] == results[1]
    assert str(tmp_path) not in str(config.dump(run))
    (tmp_path / 'two' / 'b.model').write_bytes(model + b'\0')
    assert cache.home(text, tokenizer, tmp_path) != results[1][1]


@pytest.mark.parametrize('open_it', [
    lambda path: data.Files(path).files(), lambda path: data.HuggingFace(path).fit((), 'nowhere'),
    lambda path: data.SentencePiece(model=path).fit((), 'nowhere')], ids=['Files', 'HuggingFace', 'SentencePiece'])
def test_a_missing_file_is_one_line_with_the_full_path_and_what_to_do(open_it, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('LM_DATA', 'sets')
    with pytest.raises(config.Error) as error:
        open_it('books/a.json')
    message = str(error.value)
    assert "'books/a.json'" in message and f'{tmp_path}/sets/books/a.json' in message and '\n' not in message
    assert message.endswith('set LM_DATA to the folder of the data sets (see docs/data.md), or give an absolute path.')
    with pytest.raises(config.Error) as error:
        open_it('./a.json')
    assert f'{tmp_path}/a.json' in str(error.value) and 'LM_DATA' not in str(error.value)


def content(name):
    read = gzip.open if name.endswith('.gz') else open
    with read(paths.locate(name), 'rb') as file:
        return file.read()


def test_the_files_here_are_those_of_the_guide():
    guide = (pathlib.Path(__file__).resolve().parents[1] / 'docs' / 'data.md').read_text(encoding='utf-8')
    rows = re.findall(r'^\| `(.+)` \| (\d+) \| `([0-9a-f]{64})` \|$', guide, re.MULTILINE)
    assert len(rows) == 27 == len({name for name, _, _ in rows})
    present = [row for row in rows if os.path.exists(paths.locate(row[0]))]
    if not present:
        pytest.skip(f'no data set of docs/data.md is in {os.path.abspath(paths.locate(""))}')
    assert present == [(name, str(len(content(name))), hashlib.sha256(content(name)).hexdigest())
                       for name, _, _ in present]
