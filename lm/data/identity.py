"""What files hold, in a few digits: the identity that names token caches and that a resumed run compares."""
import contextlib
import os
import zlib

from lm.config import checksums, paths
from lm.config.files import make_directory

_SMALL = 2 ** 26
_known = {}  # path -> [stamp, checksum]


def digest(files, small=_SMALL):
    """Returns [name, bytes, checksum] of each of `files`: a content identity without directories or dates.

    All bytes count. Where the files on this machine have more than `small` bytes together, the checksums are kept in
    the folder of caches, and a file is read again when its inode, its size or one of its times has changed. Of a remote
    file counts what its store says of it: its checksum, or when it was written.
    """
    sizes = [file.size() for file in files]
    local = [file for file in files if file.system is None]
    large = sum(size for file, size in zip(files, sizes) if file.system is None) > small
    sums = _kept(local) if large else {file.path: _crc(file) for file in local}
    return [[file.name, size, sums[file.path] if file.system is None else file.mark()]
            for file, size in zip(files, sizes)]


def _crc(file):
    with file.open() as stream, file.readable():
        return zlib.crc32(stream.read())


def _kept(files):
    """Returns {path: checksum} of local files, for what has not changed from the record of earlier processes."""
    record = paths.caches() / 'checksums.json'
    with contextlib.suppress(checksums.Damaged):
        _known.update(checksums.read_json(record, {}, 'it is made again.'))
    before, sums = dict(_known), {}
    for file in files:
        with file.readable():
            sums[file.path] = checksums.of_file(os.path.abspath(file.path), _known)
    if _known != before:
        with contextlib.suppress(OSError):  # a record that cannot be written costs another reading
            make_directory(record.parent)
            checksums.write_json(record, _known)
    return sums
