"""Documents out of files: your own, and those of the Python standard library, which every machine has."""

import dataclasses
import glob
import hashlib
import os
import stat
import sys
import sysconfig

from lm import config
from lm.config import paths
from lm.config.files import require
from lm.data import formats, globs, identity, readers
from lm.data.sources import Reject, Source
from lm.data.streams import File

_ONCE_LONGEST = 2 ** 25  # bytes of a line that was read once; in fingerprints, so that older runs resume
# folders of the standard library's directory that are not the library
_SKIPPED = ('site-packages', 'dist-packages', '__pycache__', 'test', 'tests', 'idle_test')


@dataclasses.dataclass(frozen=True)
class Files(Source):
    """The files that match a glob, or any of a tuple of globs (`**` for all directories below), sorted by path.

    `.jsonl` has a document a line, `.parquet` one a row, `.json` one a line, one an entry of its list or a single one,
    all at `field`; any other file is one document of plain text. Each may also end in `.gz` or `.zst`. Relative paths
    are under $LM_DATA (config.paths.locate); `gs://`, `s3://` and the like go through fsspec. A file that several links
    lead to is read once. `name` replaces the label taken from the pattern.
    """
    pattern: str | tuple[str, ...]
    field: str = 'text'
    name: str = ''

    @property
    def label(self):
        return self.name or _stem(self._patterns[0])

    @property
    def _patterns(self):
        return (self.pattern,) if isinstance(self.pattern, str) else tuple(self.pattern)

    def files(self):
        """Returns the File of each match, without repetition; raises config.Error for a glob without any."""
        files = {}
        for pattern in self._patterns:
            matches = _match(paths.locate(pattern, glob.escape))
            if not matches:
                raise config.Error(f'no file matches {pattern!r}; {_surroundings(pattern)}')
            for key, file in matches:
                files.setdefault(key, file)
        if not files:
            raise config.Error('Files has no pattern; give a path or a glob, such as wiki/*.jsonl.')
        return list(files.values())

    def records(self):
        for file in self.files():
            if file.size():
                yield from formats.records(file, self.label, self.field)
            else:
                yield Reject('empty file', file.path, 0)

    def unchecked(self):
        return [file.path for file in self.files() if file.size() and not formats.checked(file, self.field)]

    def fingerprint(self):
        files = self.files()
        read = ['json'] if any(file.formats()[0] == '.json' for file in files) else []  # they once were read as text
        return config.fingerprint(['files', self.field, _ONCE_LONGEST, identity.digest(files), *read])


def _stem(pattern):
    """Returns the name of the last part of a pattern without wildcards: data/wiki/*.jsonl -> wiki."""
    for part in reversed(pattern.replace(os.sep, '/').split('/')):
        stem = part.split('.')[0]
        if stem and not glob.has_magic(stem) and stem != '~':
            return stem
    return 'files'


def _match(pattern):
    """Returns [(what tells a file from any other, File)] of the files that match a glob, sorted by path."""
    if '://' in pattern:
        return _match_remote(pattern)
    shortest = {}
    for path in globs.expand(pattern):
        key = _inode(path)
        if key and (key not in shortest or path.count('/') < shortest[key].count('/')):
            shortest[key] = path
    return [(key, File(path)) for key, path in sorted(shortest.items(), key=lambda item: item[1])]


def _inode(path):
    """Returns (device, inode) of the file at `path`, also through links; None of a directory."""
    try:
        status = os.stat(path)
    except OSError as error:
        raise config.Error(f'cannot read {path}: {error.strerror}; restore what it leads to, or leave it out of the '
                           'pattern.') from error
    if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
        raise config.Error(f'{path} is neither a file nor a directory; copy what comes out of it into a file.')
    return (status.st_dev, status.st_ino) if stat.S_ISREG(status.st_mode) else None


def _match_remote(pattern):
    fsspec = require('fsspec', f'reading {pattern}', 'fsspec')
    try:
        system, path = fsspec.core.url_to_fs(pattern)
        return [(match, File(match, system)) for match in sorted(system.glob(path)) if system.isfile(match)]
    except Exception as error:  # each file system of fsspec raises its own kinds
        raise config.Error(f'cannot read {pattern}: {config.first_line(error).rstrip(".")}; '
                           's3:// needs s3fs, gs:// needs gcsfs.') from error


def _surroundings(pattern):
    """Returns where the missing match was looked for, what the nearest directory above it holds, and what helps."""
    place = paths.locate(pattern)
    if '://' in place:
        return f'looked for {place}: check the bucket, the path and your credentials.'
    place = folder = os.path.abspath(place)
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    names = [name + '/' * os.path.isdir(os.path.join(folder, name)) for name in globs.names(folder)]
    shown = ', '.join(names[:8]) + (', ...' if len(names) > 8 else '')
    return (f'looked for {place}: the nearest directory, {folder}, holds {shown or "nothing"}; '
            f'{paths.remedy(pattern)}')


@dataclasses.dataclass(frozen=True)
class PythonStdlib(Source):
    """The source files of the running Python's standard library, some 12 MB.

    The order looks random and is fixed by the names. Installed packages are left out, and so are the library's own
    tests, which not every machine has.
    """

    @property
    def label(self):
        return 'python-stdlib'

    def _files(self):
        root = sysconfig.get_path('stdlib')
        paths = []
        for folder, folders, names in os.walk(root):
            folders[:] = [inner for inner in folders if inner not in _SKIPPED]
            paths += [os.path.join(folder, name)[len(root):] for name in names if name.endswith('.py')]
        if not paths:
            raise config.Error(f'no Python source file under {root}; install the standard library, or use data.Files.')
        return root, sorted(paths, key=lambda name: hashlib.sha256(name.encode()).digest())

    def records(self):
        root, names = self._files()
        for name in names:
            yield from readers.read_text(File(root + name), self.label)

    def fingerprint(self):
        root, names = self._files()
        sizes = [[name, os.path.getsize(root + name)] for name in names]
        return config.fingerprint(['python-stdlib', sys.version, sizes])
