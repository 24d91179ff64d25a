"""Files as they are stored: opened, decompressed by gzip or zstd, and known to be whole before any of it counts."""
import contextlib
import dataclasses
import functools
import gzip
import os
import zlib
from collections.abc import Iterator
from typing import Any

from lm import config
from lm.config.files import require
from lm.data.sources import Reject

BLOCK = 2 ** 16
_COMPRESSIONS = ('.gz', '.zst')
_MARKS = ('md5Hash', 'crc32c', 'ETag', 'etag', 'blob_id', 'generation', 'LastModified', 'last_modified', 'mtime',
          'created')  # names under which stores say what changes with the content of an object


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
        with self.readable():
            return open(self.path, 'rb') if self.system is None else self.system.open(self.path, 'rb')

    @contextlib.contextmanager
    def readable(self):
        """Turns what a file system or a decompressor raises into a config.Error."""
        kinds = Exception if self.system else (OSError, EOFError, zlib.error)  # remote stores raise kinds of their own
        try:
            yield
        except config.Error:
            raise
        except kinds as error:
            reason = getattr(error, 'strerror', None) or config.first_line(error)
            raise config.Error(f'cannot read {self.path}: {reason}; check its permissions, or leave it out of the '
                               'pattern.') from error

    def size(self):
        """Returns the stored size in bytes."""
        with self.readable():
            return os.path.getsize(self.path) if self.system is None else self.system.size(self.path)

    def mark(self):
        """Returns what a remote store says of the content, such as its MD5 or when it was written; 0 for nothing."""
        with self.readable():
            entry = self.system.info(self.path)
        return next((f'{name}={entry[name]}' for name in _MARKS if entry.get(name)), 0)

    def stamp(self):
        """Returns what changes with the content, without reading it."""
        if self.system is not None:
            return self.size(), self.mark()
        with self.readable():
            status = os.stat(self.path)
        return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns

    def formats(self):
        """Returns (format suffix, compression suffix) in lower case: a.jsonl.gz -> ('.jsonl', '.gz')."""
        stem, suffix = os.path.splitext(self.name.lower())
        return (os.path.splitext(stem)[1], suffix) if suffix in _COMPRESSIONS else (suffix, '')


def decompressed(raw, compression):
    """Returns the stream of what a stream of bytes holds under a compression suffix, '' for none."""
    if compression == '.gz':
        return gzip.GzipFile(fileobj=raw)
    if compression == '.zst':
        return require('pyarrow', 'reading .zst', 'pyarrow').CompressedInputStream(raw, 'zstd')
    return raw


def blocks(file) -> Iterator[bytes | Reject]:
    """Yields the decompressed bytes in order, or nothing but a Reject where a compressed stream is not whole.

    That is known when the stream has been read to its end, checksums included, once before the first of its bytes.
    """
    if fault := broken(file):
        yield fault
        return
    with file.open() as raw, file.readable():
        yield from _blocks(decompressed(raw, file.formats()[1]))


def _blocks(stream):
    read = getattr(stream, 'read1', stream.read)
    while block := read(BLOCK):
        yield block


def broken(file):
    """Returns the Reject of a compressed file that cannot be read to its end, with its first bad line, or that holds
    nothing; None of a whole one, and of one that is not compressed.
    """
    return _broken(file, file.stamp()) if file.formats()[1] else None


@functools.lru_cache(2 ** 14)
def _broken(file, _):
    compression, line, size = file.formats()[1], 1, 0
    with file.open() as raw, file.readable():
        try:
            for block in _blocks(decompressed(raw, compression)):
                line += block.count(b'\n')
                size += len(block)
        except (EOFError, zlib.error, OSError) as error:
            if getattr(error, 'errno', None) is not None:
                raise
            return Reject(f'broken {compression[1:]} stream', f'{file.path}:{line}', max(size, file.size()))
    return None if size else Reject('empty file', file.path, file.size())
