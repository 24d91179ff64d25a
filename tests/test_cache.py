"""Token caches: what is written is what was encoded, whoever wrote it, and however often it was killed."""

import errno
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from lm import config, data
from lm.commands import data as command
from lm.data import cache, shards

SOURCE = data.Synthetic(12, 700)
EXPERIMENT = '''
import dataclasses
from lm import data

@dataclasses.dataclass(frozen=True)
class Run:
    data: data.Corpus

TEXT = data.Files('./a.jsonl')

def config():
    return Run(data.Corpus(train=data.Cut(TEXT, 0.0, 0.5), valid=data.Cut(TEXT, 0.5, 1.0), tokenizer=data.Bytes(),
                           context=8, batch=2))
'''


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(shards, '_CHARACTERS', 1000)


def content(directory):
    report = json.loads((directory / 'report.json').read_text())
    del report['seconds']
    return (directory / 'tokens.bin').read_bytes(), (directory / 'offsets.npy').read_bytes(), report


@pytest.mark.parametrize('tokenizer', [data.Bytes(), data.Chars(), data.Words(), data.SentencePiece(size=300),
                                       data.SentencePiece(size=300, alpha=0.2)])
def test_a_cache_holds_every_document_as_it_is_encoded(tokenizer, tmp_path, small_chunks):
    encoder = cache.fit(SOURCE, tokenizer, tmp_path)
    built = cache.build(SOURCE, encoder, tmp_path, workers=3)
    end = [] if encoder.eos is None else [encoder.eos]
    for number, document in enumerate(SOURCE.documents()):
        assert built.document(number).tolist() == [*encoder.encode(document.text).tolist(), *end]
    report = built.report
    assert (report['documents'], report['bytes'], report['tokens']) == (12, 8400, built.tokens.size)
    assert report['bytes_per_token'] == 8400 / built.tokens.size and report['vocabulary'] == encoder.size
    assert built.offsets.dtype == np.int64 and built.offsets[[0, -1]].tolist() == [0, built.tokens.size]


@pytest.mark.parametrize('alpha', [0.0, 0.2])
def test_the_number_of_workers_changes_nothing(alpha, tmp_path, small_chunks):
    encoder = cache.fit(SOURCE, data.SentencePiece(size=300, alpha=alpha), tmp_path)
    built = [content(cache.build(SOURCE, encoder, tmp_path / str(workers), workers).directory) for workers in (1, 2, 5)]
    assert built[0] == built[1] == built[2]


def test_a_document_longer_than_a_chunk_stays_one(tmp_path):
    text = 'all work and no play\n' * 300_000
    (tmp_path / 'a.txt').write_text(text)
    built = cache.build(data.Files(str(tmp_path / 'a.txt')), data.Bytes().fit((), '.'), tmp_path)
    assert built.offsets.tolist() == [0, len(text) + 1]
    assert built.tokens[:-1].astype(np.uint8).tobytes() == text.encode()


def test_ids_take_four_bytes_where_two_are_too_few(tmp_path):
    words = tmp_path / 'a.txt'
    words.write_text(' '.join(map(str, range(65_535))))
    encoder, [built] = cache.prepare(data.Files(str(words)), data.Words(), tmp_path)
    assert encoder.size == 65_537 and built.tokens.dtype == np.uint32
    words.write_text(' '.join(map(str, range(65_534))))
    assert cache.prepare(data.Files(str(words)), data.Words(), tmp_path)[1][0].tokens.dtype == np.uint16


def test_a_finished_cache_is_opened_and_not_built_again(tmp_path):
    encoder = data.Bytes().fit((), '.')
    first = cache.build(SOURCE, encoder, tmp_path)
    written = (first.directory / 'tokens.bin').stat().st_mtime_ns
    assert (cache.build(SOURCE, encoder, tmp_path).directory / 'tokens.bin').stat().st_mtime_ns == written
    assert sorted(path.suffix for path in tmp_path.iterdir()) == ['', '.lock']
    assert isinstance(cache.open(first.directory).tokens, np.memmap)
    others = [cache.build(data.Synthetic(12, 701), encoder, tmp_path),
              cache.build(SOURCE, cache.fit(SOURCE, data.Chars(), tmp_path), tmp_path)]
    assert len({first.directory, *(other.directory for other in others)}) == 3


def test_each_leaf_of_a_mix_has_a_cache(tmp_path):
    mix = data.Mix((SOURCE, data.Synthetic(5, 300, seed=1)), (1.0, 2.0))
    encoder, caches = cache.prepare(mix, data.Chars(), tmp_path)
    assert [part.report['documents'] for part in caches] == [12, 5]
    assert encoder.characters == tuple(sorted({c for document in mix.documents() for c in document.text}))


def test_only_the_training_source_is_sampled(tmp_path):
    tokenizer, valid = data.SentencePiece(size=300, alpha=0.3), data.Pick(SOURCE, 0.0, 0.5)
    encoder, [train] = cache.prepare(SOURCE, tokenizer, tmp_path)
    same, [held] = cache.prepare(valid, tokenizer, tmp_path, SOURCE)
    first = next(valid.documents()).text
    np.testing.assert_array_equal(held.document(0)[:-1], encoder.encode(first))
    assert encoder.fingerprint() == same.fingerprint() == held.report['tokenizer'] != train.report['tokenizer']
    assert train.report['bytes_per_token'] < held.report['bytes_per_token']


@pytest.mark.parametrize('tokenizer', [data.Bytes(), data.Chars(), data.SentencePiece(size=300)])
def test_an_empty_corpus_is_one_line_that_says_why(tokenizer, tmp_path):
    (tmp_path / 'a.jsonl').write_text('{"body": "x"}\n')
    sources = [(data.Files(str(tmp_path / 'a.jsonl')), "1 x no field 'text', first at"),
               (data.Pick(SOURCE, 0.0, 1e-9), 'no document is left')]
    for source, match in sources:
        with pytest.raises(config.Error, match=match) as error:
            cache.prepare(source, tokenizer, tmp_path)
        assert '\n' not in str(error.value)
    assert not [path for path in tmp_path.iterdir() if path.is_dir() and path.suffix == '']


def test_an_error_of_the_encoder_reaches_the_caller(tmp_path, small_chunks):
    encoder = cache.fit(data.Synthetic(1, 5), data.Chars(), tmp_path)
    with pytest.raises(config.Error, match='not among the'):
        cache.build(data.Synthetic(50, 700, seed=5), encoder, tmp_path)


@pytest.mark.parametrize('place', ['file', 'file/cache', 'loop', 'loop/cache', 'n' * 300])
def test_a_place_that_cannot_be_written_is_named(place, tmp_path):
    (tmp_path / 'file').write_text('')
    (tmp_path / 'loop').symlink_to('loop')
    with pytest.raises(config.Error, match=f'^cannot write the token cache under {tmp_path}/{place}: .* --cache or'):
        cache.prepare(SOURCE, data.Bytes(), tmp_path / place)


def test_a_cache_of_somebody_without_a_home_needs_another_place(monkeypatch):
    monkeypatch.delenv('HOME')
    monkeypatch.delenv('LM_CACHE', raising=False)
    monkeypatch.setattr(os.path, 'expanduser', lambda path: path)  # as it is for a user without an entry
    with pytest.raises(config.Error, match=r'^there is no home directory for .*, ~/\.cache/lm; choose .*\$LM_CACHE'):
        cache.root()


@pytest.mark.parametrize('tokenizer', [data.HuggingFace, lambda path: data.SentencePiece(model=path)])
def test_a_tokenizer_file_that_is_none_is_named(tokenizer, tmp_path):
    os.mkfifo(tmp_path / 'fifo')
    (tmp_path / 'loop').symlink_to('loop')
    for name in 'fifo', 'loop', '.', 'n' * 300, 'none':
        with pytest.raises(config.Error, match=f"^cannot read the .* '{tmp_path}/{name}' at .*; check the path"):
            cache.prepare(SOURCE, tokenizer(f'{tmp_path}/{name}'), tmp_path / 'cache')


def test_a_full_disk_is_one_line_and_the_build_continues_later(tmp_path, small_chunks):
    encoder, save, left = data.Bytes().fit((), '.'), np.savez, [3]

    def fill(*given, **arrays):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, 'No space left on device')
        save(*given, **arrays)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(np, 'savez', fill)
        with pytest.raises(config.Error, match='No space left on device; make room'):
            cache.build(SOURCE, encoder, tmp_path / 'full', 1)
    assert len(shards_in(tmp_path / 'full')) == 3
    continued = cache.build(SOURCE, encoder, tmp_path / 'full', 1)
    assert content(continued.directory) == content(cache.build(SOURCE, encoder, tmp_path / 'whole').directory)


@pytest.mark.parametrize('damage', [lambda path: path.write_bytes(path.read_bytes()[:-2]), pathlib.Path.unlink])
def test_a_damaged_cache_is_refused(damage, tmp_path):
    built = cache.build(SOURCE, data.Bytes().fit((), '.'), tmp_path)
    damage(built.directory / 'tokens.bin')
    with pytest.raises(config.Error, match=r'tokens.bin .*; remove .*, and it is built again\.$'):
        cache.open(built.directory)


def test_the_place_of_caches(monkeypatch):
    monkeypatch.setenv('LM_CACHE', '/b')
    assert [str(cache.root('/a')), str(cache.root())] == ['/a', '/b']
    monkeypatch.delenv('LM_CACHE')
    monkeypatch.setenv('HOME', '/home/me')
    assert [str(cache.root()), str(cache.root('~/c'))] == ['/home/me/.cache/lm', '/home/me/c']


SLOW = '''
import dataclasses, os, sys, time
from lm import data
from lm.data import cache, shards
from lm.tokenizers import plain

class Slow(plain.ByteEncoder):
    def encode_segments(self, texts):
        time.sleep(float(sys.argv[2]))
        return super().encode_segments(texts)

shards._CHARACTERS = 1000
cache.build(data.Synthetic(12, 700), Slow(), sys.argv[1], 2)
'''


def start(root, delay):
    return subprocess.Popen([sys.executable, '-c', SLOW, str(root), str(delay)], cwd=pathlib.Path(__file__).parents[1],
                            stderr=subprocess.PIPE)


def shards_in(root):
    return {path.name: path.stat().st_mtime_ns for path in root.glob('*.partial/*.npz')}


def wait_for(condition):
    limit = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.01)


def test_a_killed_build_leaves_nothing_valid_and_is_continued_to_the_same_bytes(tmp_path, small_chunks):
    root, encoder = tmp_path / 'killed', data.Bytes().fit((), '.')
    process = start(root, 0.3)
    wait_for(lambda: len(shards_in(root)) >= 3)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    finished = shards_in(root)
    assert 3 <= len(finished) < 9 and not [path for path in root.iterdir() if path.is_dir() and not path.suffix]
    kept = []
    merge = shards.merge
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, 'merge', lambda *given: kept.append(shards_in(root)) or merge(*given))
        continued = cache.build(SOURCE, encoder, root)
    assert finished.items() <= kept[0].items()
    assert content(continued.directory) == content(cache.build(SOURCE, encoder, tmp_path / 'whole').directory)
    assert not list(root.glob('*.partial'))


def test_shards_of_another_text_are_not_taken_over(tmp_path, small_chunks):
    encoder = data.Bytes().fit((), '.')
    partial = tmp_path / 'partial'
    partial.mkdir()
    paths = [list(shards.encode(shards.chunks(data.Synthetic(6, 700, seed).documents(), encoder), encoder, partial, 1))
             for seed in (0, 1)]
    assert set(paths[0]).isdisjoint(paths[1])


def test_processes_that_build_the_same_cache_wait_for_each_other(tmp_path, small_chunks):
    root = tmp_path / 'shared'
    processes = [start(root, 0.02) for _ in range(3)]
    messages = [process.communicate()[1].decode() for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert all('Error' not in message for message in messages)
    whole = cache.build(SOURCE, data.Bytes().fit((), '.'), tmp_path / 'alone')
    [directory] = [path for path in root.iterdir() if path.is_dir()]
    assert content(directory) == content(whole.directory)


def test_threads_that_build_the_same_cache_wait_for_each_other(tmp_path, small_chunks):
    built = []
    threads = [threading.Thread(target=lambda: built.append(cache.prepare(SOURCE, data.Chars(), tmp_path)[1][0]))
               for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(built) == 4 and len({part.directory for part in built}) == 1


def test_the_verb_shows_the_report_and_the_borders_of_tokens(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('COLUMNS', '200')
    (tmp_path / 'a.jsonl').write_text('{"text": "good [b] day"}\nbroken\n')
    (tmp_path / 'x.py').write_text(EXPERIMENT)
    command.main('x.py', 'data.batch=1', cache=str(tmp_path / 'caches'), show=1)
    shown = capsys.readouterr().out
    assert 'a.jsonl:2' in shown and 'broken JSON' in shown
    assert 'g|o|o|d| |[|<257>|' in shown and 'train' in shown and 'valid' in shown
    with pytest.raises(config.Error, match='^--show=-1 is no number of documents; try --show=3.$'):
        command.main('x.py', show=-1)


def test_tiny_shakespeare_has_65_characters(shared, tmp_path):
    text = data.Files(str(shared / 'tinyshakespeare' / 'input.txt'))
    train, valid = data.Cut(text, 0.0, 0.9), data.Cut(text, 0.9, 1.0)
    encoder, [built] = cache.prepare(train, data.Chars(), tmp_path)
    _, [held] = cache.prepare(valid, data.Chars(), tmp_path, train)
    assert (encoder.size, built.tokens.size, held.tokens.size) == (65, 1_003_854, 111_540)
    assert encoder.decode(built.tokens[:15]) == 'First Citizen:\n'


def test_wikitext2_has_its_official_counts(shared, tmp_path):
    train = data.Files(str(shared / 'wikitext2' / 'train.txt.gz'))
    encoder, [built] = cache.prepare(train, data.Words(), tmp_path)
    _, [held] = cache.prepare(data.Files(str(shared / 'wikitext2' / 'test.txt.gz')), data.Words(), tmp_path, train)
    assert (encoder.size, built.tokens.size, held.tokens.size) == (33_278, 2_088_628, 245_569)
