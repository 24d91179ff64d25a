"""Formats of data files: what is read, and what is refused by the name of what it is."""
import re
import zlib

from lm import config
from lm.data import parquet, readers
from lm.data.streams import broken, decompressed

_HEAD = 2 ** 16
_PACKED = ((b'\x1f\x8b', '.gz'), (b'\x28\xb5\x2f\xfd', '.zst'))
_UNPACK, _EXPORT, _ICONV = 'unpack it', 'export its text as JSON lines or parquet', 'convert it to UTF-8, as by iconv'
_OTHERS = [(re.compile(b'(?s)' + beginning), name, remedy) for beginning, name, remedy in (
    (rb'PK\x03\x04', 'a zip archive, as .docx, .xlsx, .epub and .npz are', _UNPACK),
    (rb'.{257}ustar[\0 ]', 'a tar archive', _UNPACK),
    (rb'BZh[1-9]1AY&SY', 'compressed by bzip2', _UNPACK),
    (rb'\xfd7zXZ\0', 'compressed by xz', _UNPACK),
    (rb'\x04\x22\x4d\x18', 'compressed by lz4', _UNPACK),
    (rb'7z\xbc\xaf\x27\x1c', 'a 7z archive', _UNPACK),
    (rb'Rar!\x1a\x07', 'a rar archive', _UNPACK),
    (rb'PAR1[\0-\x1f]', 'a parquet file', 'rename it to end in .parquet'),
    (rb'ARROW1\0\0', 'an Arrow file', _EXPORT),
    (rb'\xff\xff\xff\xff', 'an Arrow stream', _EXPORT),
    (rb'Obj\x01', 'an Avro file', _EXPORT),
    (rb'SQLite format 3\0', 'an SQLite database', _EXPORT),
    (rb'\x89HDF\r\n', 'an HDF5 file', _EXPORT),
    (rb'\x93NUMPY', 'a numpy array', _EXPORT),
    (rb'\x80[\x02-\x05]', 'a Python pickle', _EXPORT),
    (rb'GGUF.\0\0\0', 'a GGUF model', ''),
    (rb'.{4}\0\0\0\0\{"', 'a safetensors file', ''),
    (rb'%PDF-\d', 'a PDF', _EXPORT),
    (rb'\xd0\xcf\x11\xe0', 'an old Office document', _EXPORT),
    (rb'\{\\rtf', 'an RTF document', _EXPORT),
    (rb'WARC/[01]\.', 'a WARC web archive', _EXPORT),
    (rb'version https://git-lfs', 'a Git LFS pointer instead of the file', 'fetch it by `git lfs pull`'),
    (rb'\xff\xfe', 'text in UTF-16 or UTF-32', _ICONV),
    (rb'\xfe\xff|\0\0\xfe\xff', 'text in UTF-16 or UTF-32', _ICONV))]
_CONTROL = bytes({*range(32)} - {*b'\t\n\v\f\r\x1b'})


def records(file, label, field):
    """Yields the documents of a file, and a Reject for whatever cannot be used.

    `.jsonl` has a document a line, `.parquet` one a row, `.json` either a line or a list, all at `field`; any other
    file is text. Raises config.Error where the content is of a format that is none of these.
    """
    suffix, _ = file.formats()
    _recognise(file, suffix)
    match suffix:
        case '.jsonl' | '.ndjson':
            return readers.read_jsonl(file, label, field)
        case '.json':
            return readers.read_json(file, label, field)
        case '.parquet':
            return parquet.read(file, label, field)
    return readers.read_text(file, label)


def lines(file, label):
    """Yields each line of a text file, without its end, as a Document, or the Reject of one that cannot be used."""
    _recognise(file, file.formats()[0])
    yield from readers.read_lines(file, label)


def _recognise(file, suffix):
    """Raises config.Error where the first bytes of a file, or of what is compressed in it, tell another format."""
    compression, stored = file.formats()[1], _head(file, '')
    packed = compression or next((ending for magic, ending in _PACKED if stored.startswith(magic)), '')
    inside = _head(file, packed)
    name, remedy = _named(inside or stored, suffix)
    if packed and not compression:
        name = f'compressed by {packed[1:]}' + f' ({name} inside)' * bool(name)
        remedy = remedy or f'rename it to end in {packed}'
    if compression and not inside and _is_text(stored):
        name, remedy = 'plain text', f'rename it to end without {compression}'
    if not name and suffix != '.parquet' and _binary(inside) and not broken(file):
        name = 'binary data'
    if name:
        raise config.Error(f'{file.path} is {name}; {remedy + ", or " if remedy else ""}leave it out of the pattern.')


def _head(file, compression):
    with file.open() as raw, file.readable():
        try:
            return decompressed(raw, compression).read(_HEAD)
        except (OSError, EOFError, zlib.error):
            if not compression:
                raise
    return b''


def _named(head, suffix):
    """Returns (name, remedy) of the format of which a file's first bytes are; ('', '') for one that is read."""
    for beginning, name, remedy in _OTHERS:
        if beginning.match(head) and not (suffix == '.parquet' and name == 'a parquet file'):
            return name, remedy
    return '', ''


def _binary(head):
    """Returns whether the first bytes of a file are no text: of any encoding that has no NUL in it."""
    return head[:64].count(0) >= 4 or len(head) - len(head.translate(None, _CONTROL)) > len(head) / 10


def _is_text(head):
    """Returns whether the first bytes of a file, some of them, are text in UTF-8 of which the last may be cut."""
    return bool(head) and not _binary(head) and '\ufffd' not in head.decode(errors='replace')[:-3]


def checked(file, field):
    """Returns whether damage of a compressed or parquet file shows, by checksums of what it holds; true of any other.
    """
    suffix, compression = file.formats()
    if compression == '.zst' and not broken(file):
        with file.open() as raw, file.readable():
            return _zstd_checked(raw)
    return bool(compression) or suffix != '.parquet' or parquet.checked(file, field)


def _zstd_checked(stream):
    """Returns whether the first frame of a zstd stream has a checksum (RFC 8878, section 3.1)."""
    while (magic := int.from_bytes(stream.read(4), 'little')) & 0xFFFFFFF0 == 0x184D2A50:  # a skippable frame
        stream.seek(int.from_bytes(stream.read(4), 'little'), 1)
    return magic == 0xFD2FB528 and bool(stream.read(1)[0] & 4)
