"""Records out of files: plain text, JSON lines and parquet, each also compressed by gzip or zstd.

Lines end at '\\n' alone. A bad line is left out and reported; the lines around it are kept.
"""

import dataclasses
import gzip
import importlib
import io
import json
import os
import zlib
from collections.abc import Iterator
from typing import Any

from lm import config
from lm.config.files import require
from lm.data.sources import Document, Reject, examine

_BLOCK = 2 ** 16
_BOM = b'\xef\xbb\xbf'
_ENDS = 2 ** 12
_COMPRESSIONS = ('.gz', '.zst')


@dataclasses.dataclass(frozen=True)
class File:
    """A file to read: on this machine, or on `system` (an fsspec file system) where one is given."""
    path: str
    system: Any = None

    @property
    def name(self):
        """Returns the name without its directories."""
        return self.path.rpartition('/')[2]

    def open(self):
        """Returns a binary stream of the bytes as stored; raises config.Error where that is not allowed."""
        try:
            return open(self.path, 'rb') if self.system is None else self.system.open(self.path, 'rb')
        except OSError as error:
            raise config.Error(f'cannot read {self.path}: {error.strerror or error}; '
                               'check its permissions, or leave it out of the pattern.') from error

    def size(self):
        """Returns the stored size in bytes."""
        return os.path.getsize(self.path) if self.system is None else self.system.size(self.path)

    def formats(self):
        """Returns (format suffix, compression suffix) in lower case: a.jsonl.gz -> ('.jsonl', '.gz')."""
        stem, suffix = os.path.splitext(self.name.lower())
        return (os.path.splitext(stem)[1], suffix) if suffix in _COMPRESSIONS else (suffix, '')


def digest(files, whole=2 ** 26):
    """Returns [name, bytes, crc32] of each of `files`: a content identity without directories or dates.

    The checksum covers all bytes where the files together have at most `whole`, and 4 KiB at either end otherwise;
    of a remote file, name and size alone count.
    """
    sizes = [file.size() for file in files]
    span = max(sizes, default=0) if sum(sizes) <= whole else _ENDS
    return [[file.name, size, _checksum(file, size, span)] for file, size in zip(files, sizes)]


def _checksum(file, size, span):
    if file.system is not None:
        return 0
    with file.open() as stream:
        head = zlib.crc32(stream.read(span))
        stream.seek(max(span, size - span))
        return zlib.crc32(stream.read(span), head)


def _decompress(stream, compression):
    if compression == '.gz':
        return gzip.GzipFile(fileobj=stream)
    if compression == '.zst':
        return require('pyarrow', 'reading .zst', 'pyarrow').CompressedInputStream(stream, 'zstd')
    return stream


def blocks(file) -> Iterator[bytes | Reject]:
    """Yields the decompressed bytes in order, then a Reject where the compressed stream is broken."""
    _, compression = file.formats()
    number = 1
    with file.open() as raw:
        try:
            stream = _decompress(raw, compression)
            read = getattr(stream, 'read1', stream.read)
            while block := read(_BLOCK):
                yield block
                number += block.count(b'\n')
        except (EOFError, zlib.error, OSError) as error:
            if not compression or getattr(error, 'errno', None) is not None:
                raise
            yield Reject(f'broken {compression[1:]} stream', f'{file.path}:{number}')


def lines(file, limit) -> Iterator[tuple[int, bytes | Reject]]:
    """Yields (number from 1, line without its '\\n'), with a Reject in place of a line longer than `limit` bytes."""
    number, held, size = 1, [], 0
    for block in blocks(file):
        if isinstance(block, Reject):
            yield number, block
            break
        for place, piece in enumerate(block.split(b'\n')):
            if place:
                yield number, b''.join(held) if size <= limit else _overlong(file, number, limit, size)
                number, held, size = number + 1, [], 0
            size += len(piece)
            held = [*held, piece] if size <= limit else []
    if size:
        yield number, b''.join(held) if size <= limit else _overlong(file, number, limit, size)


def _overlong(file, number, limit, size):
    return Reject(f'line of more than {limit:,} bytes', f'{file.path}:{number}', size)


def read_text(file, label, limit) -> Iterator[Document | Reject]:
    """Yields a Reject for each bad line, then the rest of the file as one Document."""
    content = list(blocks(file))
    broken = [block for block in content if isinstance(block, Reject)]
    data = b''.join(block for block in content if isinstance(block, bytes)).removeprefix(_BOM)
    record = examine(data, label, file.path)
    if data and (isinstance(record, Reject) or _longest(data, limit) > limit):
        faults = [(number, line, _fault(line, limit)) for number, line in enumerate(data.split(b'\n'), 1)]
        broken += [Reject(fault, f'{file.path}:{number}', len(line)) for number, line, fault in faults if fault]
        kept = [line for _, line, fault in faults if not fault]
        data = b'\n'.join(kept) if any(kept) else b''
        record = examine(data, label, file.path)
    yield from broken
    if data or not broken:
        yield record


def _longest(data, limit):
    """Returns the bytes of the longest line, or of all of `data` where that is within `limit` already."""
    return len(data) if len(data) <= limit else max(map(len, data.split(b'\n')))


def _fault(line, limit):
    if len(line) > limit:
        return f'line of more than {limit:,} bytes'
    if b'\0' in line:
        return 'NUL character'
    return '' if _is_utf8(line) else 'not valid UTF-8'


def _is_utf8(data):
    try:
        data.decode('utf-8')
    except UnicodeDecodeError:
        return False
    return True


def read_jsonl(file, label, field, limit) -> Iterator[Document | Reject]:
    """Yields the string at `field` of the object on each line; blank lines count for nothing."""
    for number, line in lines(file, limit):
        if isinstance(line, Reject):
            yield line
        elif line.strip():
            record = _parse(line.removeprefix(_BOM), label, field, f'{file.path}:{number}')
            yield _sized(record, len(line))


def _sized(record, size):
    """Returns a record, of `size` bytes where it is a Reject of unknown size."""
    unsized = isinstance(record, Reject) and record.size is None
    return dataclasses.replace(record, size=size) if unsized else record


def read_json(file, label, field, limit) -> Iterator[Document | Reject]:
    """Yields the string at `field` of each object in a .json file: one a line, those of one list, or a single one.

    Which of these it is shows in its content. Entries of a list are numbered from 1, as lines are. Raises config.Error
    where it is none of them.
    """
    start = _first_byte(file)
    if start not in (b'{', b'[', b''):
        raise config.Error(f'{file.path} holds no JSON objects: it begins with {start.decode("latin-1")!r}; '
                           'leave it out of the pattern, or rename it to end in .txt to read it as text.')
    if start == b'[' or (start == b'{' and not _object_a_line(file, limit)):
        parts = list(blocks(file))
        data = b''.join(block for block in parts if isinstance(block, bytes)).removeprefix(_BOM)
        try:
            values = json.loads(data.decode('utf-8'))
        except (ValueError, RecursionError) as error:
            if start == b'[':
                yield from (block for block in parts if isinstance(block, Reject))
                yield Reject('broken JSON', f'{file.path}:{getattr(error, "lineno", 1)}', len(data))
                return
        else:
            for number, value in enumerate(values if isinstance(values, list) else [values], 1):
                yield _sized(_take(value, label, field, f'{file.path}:{number}'), len(json.dumps(value)))
            return
    yield from read_jsonl(file, label, field, limit)


def _first_byte(file):
    """Returns the first byte of a file that is no white space, b'' where there is none."""
    for block in blocks(file):
        if isinstance(block, bytes) and (text := block.removeprefix(_BOM).lstrip()):
            return text[:1]
    return b''


def _object_a_line(file, limit):
    """Returns whether the first line of a file that begins with an object holds all of it, or is too long to tell."""
    first = next(line for _, line in lines(file, limit) if isinstance(line, Reject) or line.strip())
    try:
        return isinstance(first, Reject) or isinstance(json.loads(first.removeprefix(_BOM).decode()), dict)
    except (ValueError, RecursionError):
        return False


def _parse(line, label, field, place):
    if b'\0' in line:
        return Reject('NUL character', place)
    try:
        value = json.loads(line.decode('utf-8'))
    except UnicodeDecodeError:
        return Reject('not valid UTF-8', place)
    except (ValueError, RecursionError):
        return Reject('broken JSON', place)
    return _take(value, label, field, place)


def _take(value, label, field, place):
    if not isinstance(value, dict):
        return Reject('no JSON object', place)
    if value.get(field) is None:
        return Reject(f'no field {field!r}', f'{place} (has {", ".join(map(repr, list(value)[:8])) or "none"})')
    return examine(value[field], label, place)


def read_parquet(file, label, field) -> Iterator[Document | Reject]:
    """Yields the value at column `field` of each row, rows numbered from 1."""
    parquet = require('pyarrow.parquet', 'reading .parquet', 'pyarrow')
    arrow = importlib.import_module('pyarrow')
    number = 0
    try:
        with file.open() as raw:
            stream = _decompress(raw, file.formats()[1])
            table = parquet.ParquetFile(stream if stream is raw else io.BytesIO(stream.read()))
            names = table.schema_arrow.names
            if field not in names:
                yield Reject(f'no field {field!r}', f'{file.path} (has {", ".join(map(repr, names[:8]))})')
                return
            for batch in table.iter_batches(batch_size=1024, columns=[field]):
                for scalar in _as_bytes(batch.column(0), arrow):
                    number += 1
                    yield examine(scalar.as_py(), label, f'{file.path}:{number}')
    except (arrow.ArrowException, EOFError, zlib.error, OSError) as error:
        if getattr(error, 'errno', None) is not None:
            raise
        yield Reject('broken parquet file', f'{file.path}:{number + 1}')


def _as_bytes(column, arrow):
    """Returns a column of strings as bytes: parquet does not promise that they are UTF-8."""
    text = arrow.types.is_string(column.type) or arrow.types.is_large_string(column.type)
    return column.cast(arrow.large_binary()) if text else column
