"""Checksums of what lm writes and reads back: a damaged file is named, and never read as something else.

A directory is sealed by `checksums.json`, which holds the checksum of each of its files and one of itself.
"""
import io
import json
import os
import threading
import time
import zlib

import numpy as np

from lm.config import files
from lm.config.files import Damaged

SEAL = 'checksums.json'
SETTLED = 2 * 10 ** 9  # nanoseconds after which no further write can leave the times of a file as they are
_ROWS, _BLOCK = 128, 2 ** 19
_WEIGHTS = np.arange(1, _ROWS + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) | np.uint64(1)
_known = {}  # path -> (stamp, checksum)


def checksum(stream):
    """Returns a checksum of the rest of a binary stream and how many bytes that was, as one str.

    Each block of 512 KiB is a matrix [128 rows, 512] of 64-bit words, whose rows are added up with odd weights: a
    change of one word changes the sums, and so does an exchange of rows. The CRC-32 of the sums, chained, is the
    checksum. One core reads 3.5 GB/s of cached files so; CRC-32 of all bytes did 1.8 GB/s, SHA-256 1.0.
    """
    words, crc, size = np.empty(_BLOCK // 8, np.uint64), 0, 0
    block = memoryview(words).cast('B')
    while count := stream.readinto(block):
        block[count:] = bytes(_BLOCK - count)
        crc = zlib.crc32(np.einsum('rc,r->c', words.reshape(_ROWS, -1), _WEIGHTS), crc)
        size += count
    return f'{crc:08x} of {size} bytes'


def stamp(path):
    """Returns what changes with the content of a file: inode, size, and the times of its last write and last change.

    Of a file that has just changed no two stamps are equal: two writes within a tick of the clock leave one time.
    """
    begun, status = time.time_ns(), os.stat(path)
    times = status.st_mtime_ns, status.st_ctime_ns
    return status.st_ino, status.st_size, *times, *(() if max(times) < begun - SETTLED else (time.perf_counter_ns(),))


def of_file(path, known=_known):
    """Returns the checksum of a file, from the dict `known` where the file cannot have changed since, else kept there.

    A file is known by its stamp: inode, size, and the times of its last write and last change. Tools may set the first
    of these times, as `cp -p` and `rsync -t` do, but not the second.
    """
    path = os.fspath(path)
    begun, status = time.time_ns(), os.stat(path)
    stamp = [status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]
    if path in known and known[path][0] == stamp:
        return known[path][1]
    with open(path, 'rb') as file:
        total = checksum(file)
    if max(stamp[2:]) < begun - SETTLED:
        known[path] = [stamp, total]
    return total


def write_json(path, value):
    """Writes a JSON value, with its own checksum, to the file at a Path, atomically."""
    text = json.dumps(value, sort_keys=True)
    files.replace(path, json.dumps({'value': value, 'checksum': zlib.crc32(text.encode())}) + '\n')


def read_json(path, shape, remedy):
    """Returns what `write_json` wrote to the file at a Path; raises Damaged where it is not that, or not of `shape`."""
    try:
        content = files.parse_json(read(path, remedy), {'value': shape, 'checksum': int})
    except Damaged:
        raise
    except ValueError as error:
        raise Damaged(f'{path} is damaged ({error})', remedy) from error
    if zlib.crc32(json.dumps(content['value'], sort_keys=True).encode()) != content['checksum']:
        raise Damaged(f'{path} is damaged (its checksum does not match)', remedy)
    return content['value']


def read(path, remedy):
    """Returns the bytes of a file; raises Damaged where it cannot be read, or is no file, such as a FIFO."""
    if not os.path.isfile(path):
        raise Damaged(f'{path} is {"no file" if os.path.lexists(path) else "missing"}', remedy)
    try:
        with open(path, 'rb') as file:
            return file.read()
    except OSError as error:
        raise Damaged(f'cannot read {path}: {error.strerror}', remedy) from error


def seal(directory):
    """Writes the checksums of all files in a directory (a Path) into `checksums.json` there."""
    write_json(directory / SEAL, {path.name: of_file(path) for path in sorted(directory.iterdir()) if path.is_file()})


def verify(directory, names, remedy, unread=()):
    """Returns {name: checksum} of a sealed directory (a Path), `names` among them, after a comparison with its files.

    Of files named in `unread` only the size is compared. Raises Damaged, with `remedy`, for the first that differs.
    """
    sums = read_json(directory / SEAL, dict.fromkeys(names, str), remedy)
    for name, total in sums.items():
        compare(directory / name, total, remedy, whole=name not in unread)
    return sums


def compare(path, total, remedy, whole=True):
    """Raises Damaged, with `remedy`, unless the file at `path` has the checksum `total`, or its size where not `whole`.
    """
    size = int(total.split()[2])
    try:
        if not os.path.isfile(path):
            raise Damaged(f'{path} is {"no file" if os.path.lexists(path) else "missing"}', remedy)
        if os.path.getsize(path) != size:
            raise Damaged(f'{path} has {os.path.getsize(path):,} bytes and should have {size:,}', remedy)
        if whole and of_file(path) != total:
            raise Damaged(f'{path} is damaged (its checksum is not that of what was written)', remedy)
    except OSError as error:
        raise Damaged(f'cannot read {path}: {error.strerror}', remedy) from error


def kept(path, make, remedy):
    """Returns the content of the file at a Path, made by `make()` and kept there, sealed, where it is missing.

    Raises Damaged where it is not what was kept; one of an older version has no seal to compare with.
    """
    manifest = path.with_name(SEAL)
    if not os.path.lexists(path):
        content = make()
        files.make_directory(path.parent)
        write_json(manifest, {path.name: checksum(io.BytesIO(content))})
        files.replace(path, content)
    if os.path.lexists(manifest):
        verify(path.parent, [path.name], remedy)
    return read(path, remedy)


class Proof:
    """The comparison of large files with their checksums in the background: a thread reads one after the other."""

    def __init__(self, sums, remedy):
        """`sums`: (path, checksum) of each file. The thread ends with the process."""
        self._sums, self._remedy, self._fault = tuple(sums), remedy, None
        self._thread = threading.Thread(target=self._compare, name='checksums', daemon=True)
        if self._sums:
            self._thread.start()

    def _compare(self):
        try:
            for path, total in self._sums:
                compare(path, total, self._remedy)
        except Damaged as fault:
            self._fault = fault

    def check(self, wait=False):
        """Raises Damaged where a file is known to be damaged; with `wait`, after all of them have been compared."""
        if wait and self._sums:
            self._thread.join()
        if self._fault:
            raise self._fault
