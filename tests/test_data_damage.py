"""Damage of every kind of file: rejected or refused by name, or made again; other text or tokens are never served."""
import base64
import collections
import gzip
import io
import itertools
import json
import os
import pathlib
import random
import shutil

import numpy as np
import pytest
from encoders import json_file

from lm import config, data
from lm.config import checksums
from lm.data import cache, formats, shards, streams

NIGHTLY = bool(os.environ.get('LM_NIGHTLY'))
CASES = 3000 if NIGHTLY else 100
TEXTS = [f'number {number} of {number * number}' for number in range(30)]
LINES = ''.join(json.dumps({'text': text}) + '\n' for text in TEXTS).encode()
# LINES by `zstd -19` 1.5.4, whose frames have a checksum; pyarrow writes none.
ZSTD = base64.b64decode(
    'KLUv/WROAq0EAHKJGBWwqQM/5CGN4EsSECm3lGmng/uSuRhAg3pMHxc6vZZv3dl85lt2p035eLt/ndKTeyp7K2yiV898Ndt62Tevqn/duk1NLeYP'
    '8+vUme36VHcLNCgd4jjpIINQKAY6AUqWIUFMOqgR8Hi+/xnQc9YREIZfEfpiFuMc5xznOOc4xzkHOCCRENnD2iSs4MW5rCOCDZIqtkLmNA==')
SKIPPED = b'\x50\x2a\x4d\x18\x04\0\0\0\1\2\3\4'  # a skippable frame, as pzstd writes before each of its own
TRAIN = data.Synthetic(4, 400)


def parquet(**options):
    pa = pytest.importorskip('pyarrow')
    import pyarrow.parquet
    file = io.BytesIO()
    pyarrow.parquet.write_table(pa.table({'n': list(range(len(TEXTS))), 'text': TEXTS}), file, **options)
    return file.getvalue()


def unchecked_zstd():
    pa = pytest.importorskip('pyarrow')
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, 'zstd') as stream:
        stream.write(LINES)
    return sink.getvalue().to_pybytes()


CHECKED = {
    'a.jsonl.gz': lambda: gzip.compress(LINES),
    'a.jsonl.zst': lambda: ZSTD,
    'b.jsonl.zst': lambda: SKIPPED + ZSTD,
    'a.parquet': lambda: parquet(write_page_checksum=True),
    'b.parquet': lambda: parquet(write_page_checksum=True, use_dictionary=False, data_page_version='2.0'),
    'c.parquet.gz': lambda: gzip.compress(parquet()),
}
UNCHECKED = {'d.jsonl.zst': unchecked_zstd, 'd.parquet': parquet, 'e.parquet': lambda: parquet(use_dictionary=False)}


def damaged(content, dice):
    """Returns bytes that differ from `content` in a way that disks, networks and kills make files differ."""
    damage, place = bytearray(content), dice.randrange(len(content))
    match dice.randrange(6):
        case 0 | 1:
            damage[place] ^= 1 << dice.randrange(8)
        case 2:
            del damage[place:]
        case 3:
            damage[place:place + 40] = bytes(len(damage[place:place + 40]))
        case 4:
            damage[place:place] = dice.randbytes(9)
        case 5:
            damage += dice.randbytes(9)
    return bytes(damage) if damage != content else damaged(content, dice)


@pytest.mark.parametrize('name', CHECKED)
def test_a_damaged_file_gives_all_of_its_documents_or_none(name, tmp_path):
    content, dice, outcomes = CHECKED[name](), random.Random(name), collections.Counter()
    path = tmp_path / name
    for _ in range(CASES):
        path.write_bytes(damaged(content, dice))
        source = data.Files(str(path))
        try:
            records = list(source.records())
        except config.Error as error:
            assert '\n' not in str(error) and str(path) in str(error)
            outcomes['refused'] += 1
            continue
        texts = [record.text for record in records if isinstance(record, data.Document)]
        assert texts == (TEXTS if len(records) > 1 else []) and source.unchecked() == []
        outcomes[bool(texts)] += 1
    assert outcomes[False] > CASES / 2 and outcomes[True] < CASES / 4, 'bytes that mean nothing may change'


@pytest.mark.parametrize('name', [*CHECKED, *UNCHECKED])
def test_files_without_a_checksum_are_told(name, tmp_path):
    (tmp_path / name).write_bytes((CHECKED | UNCHECKED)[name]())
    source = data.Cut(data.Files(str(tmp_path / name)), 0.0, 0.5)
    built = cache.build(source, data.Bytes().fit((), '.'), tmp_path)
    assert built.report['unchecked'] == source.unchecked() == [f'{tmp_path}/{name}'] * (name in UNCHECKED)
    assert ('; no checksum in 1 files' in cache.summary([built])) == (name in UNCHECKED)
    assert built.report['documents'] == len(TEXTS)


def test_text_is_not_told_to_have_no_checksum(tmp_path):
    (tmp_path / 'a.txt').write_text('text')
    assert data.Files(str(tmp_path / 'a.txt')).unchecked() == []


def test_a_file_is_read_to_its_end_once_however_often_its_records_are_asked_for(tmp_path, monkeypatch):
    (tmp_path / 'a.json.gz').write_bytes(gzip.compress(LINES))
    source = data.Files(str(tmp_path / 'a.json.gz'))
    list(source.records())
    monkeypatch.setattr(streams, 'Reject', None)  # what reading it to the end would make of a fault
    opened, gunzip = [], gzip.GzipFile
    monkeypatch.setattr(gzip, 'GzipFile', lambda **options: opened.append(1) or gunzip(**options))
    assert len(list(source.records())) == 30 and len(opened) == 4  # the head, the first byte and line, all lines


def tokenizers():
    return {'chars': data.Chars(), 'words': data.Words(), 'sentencepiece': data.SentencePiece(size=300),
            'json': data.HuggingFace(json_file())}


def served(tokenizer, root):
    """Returns what a run is served from the caches in `root`."""
    corpus = data.Corpus(train=TRAIN, valid=data.Pick(TRAIN, 0.0, 0.5), tokenizer=tokenizer, context=16, batch=4,
                         packing='bestfit')
    train, valid = corpus.open(root), corpus.open(root, 'valid')
    batches = [train.batch_at(0)['inputs'].tolist(), valid.batch_at(0)['targets'].tolist()]
    reports = [{name: value for name, value in part.report.items() if name != 'seconds'} for part in train.caches]
    return batches, reports, train.fingerprint, valid.texts


DAMAGES = (lambda path, dice: path.write_bytes(damaged(path.read_bytes(), dice)),
           lambda path, dice: path.write_bytes(damaged(path.read_bytes(), dice)),
           lambda path, dice: path.write_bytes(b'null'), lambda path, dice: path.unlink(),
           lambda path, dice: path.unlink() or path.mkdir(), lambda path, dice: path.unlink() or os.mkfifo(path))


@pytest.mark.parametrize('name', ['chars', 'words', 'sentencepiece', 'json'])
def test_no_damage_of_a_cache_goes_unnoticed(name, tmp_path, capsys):
    """Of each file of every kind: bits, ends, runs of zeros; and files that are missing, a directory or a FIFO."""
    tokenizer = tokenizers()[name]
    whole, root = tmp_path / 'whole', tmp_path / 'damaged'
    expected = served(tokenizer, whole)
    files = [path.relative_to(whole) for path in whole.rglob('*') if path.is_file() and path.suffix != '.lock']
    assert {'tokens.bin', 'offsets.npy', 'report.json', 'starts.npy', 'lengths.npy', 'bounds.npy',
            'checksums.json'} < {path.name for path in files}
    dice = random.Random(name)
    cases = list(itertools.product(files, DAMAGES))
    for file, damage in cases if NIGHTLY else dice.sample(cases, 15):
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(whole, root)
        damage(root / file, dice)
        never_made = file.parent.name.startswith('tokenizer-') and not (root / file).exists()
        assert served(tokenizer, root) == expected
        told = capsys.readouterr().err
        assert never_made or (told.startswith('lm: ') and 'again.\n' in told), file


def test_one_bit_anywhere_changes_the_checksum():
    content = np.random.default_rng(0).integers(0, 256, 2 ** 19 + 2 ** 16 + 3, np.uint8)
    before = checksums.checksum(io.BytesIO(content))
    assert before.endswith(f' of {content.size} bytes') and checksums.checksum(io.BytesIO(content)) == before
    for place in [0, 7, 4096, 2 ** 19 - 1, 2 ** 19, content.size - 1]:
        content[place] ^= 128
        assert checksums.checksum(io.BytesIO(content)) != before
        content[place] ^= 128
    for one, other in [(0, 4096), (0, 8), (4096, 8192), (0, 2 ** 18)]:  # rows, words, and half a block exchanged
        changed = content.copy()
        changed[one:one + 8], changed[other:other + 8] = content[other:other + 8], content[one:one + 8]
        assert checksums.checksum(io.BytesIO(changed)) != before
    assert checksums.checksum(io.BytesIO(content[:-1])) != before
    assert checksums.checksum(io.BytesIO(np.append(content, np.uint8(0)))) != before


@pytest.fixture
def large(tmp_path, monkeypatch):
    """A corpus whose caches are too large to be verified when they are opened, and the file of its tokens."""
    monkeypatch.setattr(cache, '_LARGE', 100)
    corpus = data.Corpus(train=TRAIN, valid=data.Synthetic(2, 300), tokenizer=data.Bytes(), context=16, batch=4)
    return corpus, corpus.open(tmp_path).caches[0].directory / 'tokens.bin'


def flip(path, place=100):
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def test_a_large_cache_is_verified_in_the_background_and_ends_the_run(large, tmp_path):
    corpus, path = large
    whole = corpus.open(tmp_path)
    whole.verify()
    assert whole.batch_at(3)['inputs'].shape == (4, 16)
    flip(path)
    stream = corpus.open(tmp_path)
    for ask in stream.verify, lambda: stream.batch_at(0):
        with pytest.raises(config.Error, match=f'^{path} is damaged .*; remove the directory .{path.parent}., and it '):
            ask()


def test_the_last_batch_of_a_pass_comes_when_its_text_has_been_verified(large, tmp_path):
    corpus, _ = large
    valid = corpus.open(tmp_path, 'valid')
    flip(valid.caches[0].directory / 'tokens.bin')
    valid = corpus.open(tmp_path, 'valid')
    with pytest.raises(checksums.Damaged, match='tokens.bin is damaged'):
        for step in range(valid.batches):
            valid.batch_at(step)


def test_a_damaged_shard_of_a_killed_build_is_encoded_again(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, '_CHARACTERS', 500)
    encoder = data.Bytes().fit((), '.')
    expected = cache.build(TRAIN, encoder, tmp_path / 'whole').tokens.tobytes()
    dice = random.Random(0)
    for number in range(8):
        root = tmp_path / str(number)
        with monkeypatch.context() as patch:
            patch.setattr(shards, 'merge', lambda paths, folder: {'tokens': len(list(paths)) * 0})
            with pytest.raises(config.Error, match='no text'):
                cache.build(TRAIN, encoder, root)
        [partial] = root.glob('*.partial')
        path = sorted(partial.glob('*.npz'))[number % 2]
        path.write_bytes(damaged(path.read_bytes(), dice))
        assert cache.build(TRAIN, encoder, root).tokens.tobytes() == expected


@pytest.mark.parametrize('name', ['chars', 'words', 'sentencepiece', 'json'])
def test_a_damaged_tokenizer_of_a_run_is_refused_by_name(name, tmp_path):
    """A run has no text to make its tokenizer again from."""
    tokenizer = tokenizers()[name]
    tokenizer.fit((document.text for document in TRAIN.documents()), tmp_path)
    [path] = [path for path in tmp_path.iterdir() if path.name != checksums.SEAL]
    content = path.read_bytes()
    for damage in content[:-1] + bytes([content[-1] ^ 1]), content[:9], b'', b'[]', b'null', b'[' * 9999, b'\xff':
        path.write_bytes(damage)
        with pytest.raises(config.Error, match=f'^{path} (is damaged|has ).*; restore it from a copy'):
            tokenizer.fit((), tmp_path)
    (tmp_path / checksums.SEAL).unlink()  # as an older version left it
    path.write_bytes(content)
    assert tokenizer.fit((), tmp_path).size > 2
    for damage in b'[]', b'null', b'[' * 9999, b'[1]', b'\xff', b'':
        path.write_bytes(damage)
        with pytest.raises(config.Error) as error:
            tokenizer.fit((), tmp_path)
        assert '\n' not in str(error.value) and len(str(error.value)) < 500


@pytest.mark.parametrize('tokenizer', [data.Chars(), data.Words()])
def test_a_run_without_its_tokenizer_is_one_line_and_gets_no_empty_one(tokenizer, tmp_path):
    with pytest.raises(config.Error, match='there is no tokenizer in .*; restore that directory'):
        tokenizer.fit((), tmp_path / 'tokenizer')
    assert not (tmp_path / 'tokenizer').exists()


@pytest.mark.parametrize('kind', ['json', 'json.gz', 'unigram', 'bpe'])
def test_no_damage_of_a_tokenizer_of_others_is_a_traceback(kind, tmp_path):
    dice = random.Random(kind)
    if 'json' in kind:
        content = pathlib.Path(json_file()).read_bytes()
        content = gzip.compress(content) if kind.endswith('.gz') else content
        tokenizer = data.HuggingFace(str(tmp_path / f'a.{kind}'))
    else:
        data.SentencePiece(size=300, kind=kind).fit((document.text for document in TRAIN.documents()), tmp_path)
        content = (tmp_path / 'sentencepiece.model').read_bytes()
        tokenizer = data.SentencePiece(model=str(tmp_path / f'a.{kind}'))
    for number in range(CASES // 3):
        (tmp_path / f'a.{kind}').write_bytes(damaged(content, dice))
        try:
            encoder = tokenizer.fit((), tmp_path / str(number))
            encoder.decode(encoder.encode('mavu do\n'))
        except config.Error as error:
            assert '\n' not in str(error) and len(str(error)) < 1000


def test_zstd_frames_are_told_apart():
    assert formats._zstd_checked(io.BytesIO(ZSTD)) and formats._zstd_checked(io.BytesIO(SKIPPED * 2 + ZSTD))
    assert not formats._zstd_checked(io.BytesIO(unchecked_zstd()))
