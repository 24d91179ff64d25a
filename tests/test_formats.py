"""Formats that are not read: refused by the name of what they are, never read as text."""
import gzip
import io
import pickle
import sqlite3
import struct
import tarfile
import zipfile

import numpy as np
import pytest

from lm import config, data

TEXT = b'a line of text that is long enough to be one\n' * 20


def packed(kind):
    """Returns TEXT in an archive or a container of others."""
    file = io.BytesIO()
    match kind:
        case 'zip':
            with zipfile.ZipFile(file, 'w') as archive:
                archive.writestr('a.txt', TEXT)
        case 'tar':
            with tarfile.open(fileobj=file, mode='w') as archive:
                entry = tarfile.TarInfo('a.txt')
                entry.size = len(TEXT)
                archive.addfile(entry, io.BytesIO(TEXT))
        case 'npz':
            np.savez(file, a=np.arange(3))
        case 'npy':
            np.save(file, np.arange(30))
        case 'arrow' | 'stream' | 'parquet':
            pa = pytest.importorskip('pyarrow')
            import pyarrow.parquet
            table = pa.table({'text': [TEXT.decode()]})
            if kind == 'parquet':
                pyarrow.parquet.write_table(table, file)
            else:
                writer = (pa.ipc.new_file if kind == 'arrow' else pa.ipc.new_stream)(file, table.schema)
                writer.write_table(table)
                writer.close()
    return file.getvalue()


def tfrecord():
    return b''.join(struct.pack('<QI', len(TEXT), 7) + TEXT + struct.pack('<I', 9) for _ in range(20))


def sqlite(path):
    with sqlite3.connect(path) as connection:
        connection.execute('create table documents (text)')
    return path.read_bytes()


def lzma_of(text):
    return pytest.importorskip('lzma').compress(text)


def bzip2_of(text):
    return pytest.importorskip('bz2').compress(text)


OTHERS = {
    'a.docx': (lambda: packed('zip'), 'a zip archive'), 'b.npz': (lambda: packed('npz'), 'a zip archive'),
    'c.tar': (lambda: packed('tar'), 'a tar archive'), 'c.txt': (lambda: packed('tar'), 'a tar archive'),
    'd.tar.gz': (lambda: gzip.compress(packed('tar')), 'a tar archive'),
    'd.tgz': (lambda: gzip.compress(packed('tar')), r'compressed by gz \(a tar archive inside\); unpack it'),
    'e.txt': (lambda: gzip.compress(TEXT), 'compressed by gz; rename it to end in .gz'),
    'f.bz2': (lambda: bzip2_of(TEXT), 'compressed by bzip2; unpack it'),
    'f.xz': (lambda: lzma_of(TEXT), 'compressed by xz; unpack it'),
    'g.arrow': (lambda: packed('arrow'), 'an Arrow file; export its text'),
    'g.jsonl': (lambda: packed('stream'), 'an Arrow stream'), 'g.npy': (lambda: packed('npy'), 'a numpy array'),
    'h.txt': (lambda: packed('parquet'), 'a parquet file; rename it to end in .parquet'),
    'i.parquet': (lambda: packed('zip'), 'a zip archive'), 'i.json': (lambda: packed('zip'), 'a zip archive'),
    'i.json.gz': (lambda: packed('zip'), 'a zip archive'), 'j.pkl': (lambda: pickle.dumps([1]), 'a Python pickle'),
    'k.pdf': (lambda: b'%PDF-1.7\n' + TEXT, 'a PDF'), 'k.rtf': (lambda: b'{\\rtf1 text}', 'an RTF document'),
    'l.warc': (lambda: b'WARC/1.0\r\n' + TEXT, 'a WARC'), 'm.tfrecord': (tfrecord, 'binary data'),
    'n.txt': (lambda: TEXT.decode().encode('utf-16'), 'text in UTF-16 or UTF-32; convert it to UTF-8'),
    'o.txt': (lambda: TEXT.decode().encode('utf-16-le'), 'binary data'),
    'p.txt': (lambda: bytes(range(256)) * 9, 'binary data'),
    'q.jsonl': (lambda: b'version https://git-lfs.github.com/spec/v1\noid sha256:4d\n', 'a Git LFS pointer'),
    'r.safetensors': (lambda: struct.pack('<Q', 60) + b'{"w":{"dtype":"F32"}}' + TEXT, 'a safetensors file'),
}


@pytest.mark.parametrize('name', OTHERS)
def test_another_format_is_refused_by_its_name(name, tmp_path):
    make, told = OTHERS[name]
    (tmp_path / name).write_bytes(make())
    with pytest.raises(config.Error, match=f'^{tmp_path}/{name} is {told}.*leave it out of the pattern') as error:
        list(data.Files(str(tmp_path / name)).records())
    assert '\n' not in str(error.value)


def test_an_sqlite_database_is_refused(tmp_path):
    content = sqlite(tmp_path / 'a.db')
    (tmp_path / 'a.txt').write_bytes(content)
    with pytest.raises(config.Error, match='an SQLite database'):
        list(data.Files(str(tmp_path / 'a.txt')).records())


@pytest.mark.parametrize('text', [
    'ORCHARDS\n', 'BZh what\n', 'RIFFRAFF\n', 'PAR1S\n', 'GIF87\n', 'PK is short\n', 'a\0b\n' * 3,
    '\x1b[31mred\x1b[0m\n', '\x0c\n', 'é\n', '\ufeffBOM\n', 'ustar ' * 99, '{"text": 1}\n'])
def test_text_that_begins_like_another_format_is_text(text, tmp_path):
    (tmp_path / 'a.txt').write_text(text + 'and so on. ' * 9, encoding='utf-8')
    [document] = data.Files(str(tmp_path / 'a.txt')).documents()
    assert document.text.endswith('and so on. ')


def test_an_empty_file_is_told(tmp_path):
    for content in b'', gzip.compress(b''):
        (tmp_path / 'a.jsonl.gz').write_bytes(content)
        assert list(data.Files(str(tmp_path / 'a.jsonl.gz')).records()) == [
            data.Reject('empty file', f'{tmp_path}/a.jsonl.gz', len(content))]


def test_a_stream_of_several_members_is_read_whole(tmp_path):
    (tmp_path / 'a.txt.gz').write_bytes(gzip.compress(b'one\n') + gzip.compress(b'two\n'))
    assert [document.text for document in data.Files(str(tmp_path / 'a.txt.gz')).documents()] == ['one\ntwo\n']
