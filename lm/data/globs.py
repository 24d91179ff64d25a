"""Glob patterns as the standard library has them, but for two things that it does in silence: it leaves out what is in
a directory that may not be listed, and it enters a link to a directory above it, and again inside, some 40 times.
"""
import collections
import fnmatch
import glob
import itertools
import os

from lm import config


def expand(pattern):
    """Yields the paths that match a glob; `**` is all directories below, each once, whatever links lead to it.

    Raises config.Error where a directory on the way cannot be listed.
    """
    return _below('/' * pattern.startswith('/'), [part for part in pattern.split('/') if part])


def _below(folder, parts):
    """Yields the paths in a directory that match the rest of a pattern."""
    if not parts:
        yield folder
        return
    plain = list(itertools.takewhile(lambda part: not glob.has_magic(part), parts))
    if plain:  # in one step: a path may have thousands
        path, rest = os.path.join(folder, *plain), parts[len(plain):]
        if os.path.isdir(path) if rest else os.path.lexists(path):
            yield from _below(path, rest)
        return
    first, *rest = parts
    if first == '**':
        for inner in _directories(folder):
            yield from _below(inner, rest or ['*'])
        return
    matches = [name for name in names(folder) if fnmatch.fnmatchcase(name, first) and _shown(name, first)]
    for path in (os.path.join(folder, name) for name in matches):
        if os.path.isdir(path) if rest else os.path.lexists(path):
            yield from _below(path, rest)


def _shown(name, pattern='*'):
    return not name.startswith('.') or pattern.startswith('.')


def _directories(top):
    """Yields a directory and all below it that are not hidden, those nearer the top first."""
    queue, seen = collections.deque([top]), set()
    while queue:
        folder = queue.popleft()
        status = os.stat(folder or '.')
        if (status.st_dev, status.st_ino) not in seen:
            seen.add((status.st_dev, status.st_ino))
            yield folder
            inner = (os.path.join(folder, name) for name in names(folder) if _shown(name))
            queue.extend(filter(os.path.isdir, inner))


def names(folder):
    """Returns the sorted names in a directory; raises config.Error where it cannot be listed."""
    try:
        return sorted(os.listdir(folder or '.'))
    except OSError as error:
        raise config.Error(f'cannot list the directory {folder}: {error.strerror}; check its permissions, or leave it '
                           'out of the pattern.') from error
