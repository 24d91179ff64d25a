"""Data paths: those of an experiment are relative to the folder of data sets, $LM_DATA; caches lie in $LM_CACHE."""

import os
import pathlib

from lm.config.annotations import Error


def locate(path, escape=str):
    """Returns where the data `path` of an experiment is: under $LM_DATA (default ./data), a folder or a bucket's URL.

    Absolute paths, `~/x`, URLs, and what begins with `./` or `../` (relative to the current directory) do not depend on
    LM_DATA. Call it only to open a file: fingerprints and config.json keep `path`, so moving the data changes no run.
    `escape` is applied to the folder, e.g. glob.escape where `path` is a pattern.
    """
    if '://' in path or path.split('/')[0] in ('.', '..'):
        return path
    folder = os.path.expanduser(os.environ.get('LM_DATA') or 'data')
    return os.path.join(escape(folder), os.path.expanduser(path))


def caches(cache=''):
    """Returns the directory of all token caches: `cache`, else $LM_CACHE, else ~/.cache/lm."""
    place = os.path.expanduser(cache or os.environ.get('LM_CACHE') or '~/.cache/lm')
    if place.startswith('~'):
        raise Error(f'there is no home directory for the token caches, {place}; choose another place with --cache or '
                    '$LM_CACHE.')
    return pathlib.Path(place)


def remedy(path):
    """Returns what to do about a missing file: LM_DATA is named only where `path` depends on it."""
    if locate(path) in (path, os.path.expanduser(path)):
        return 'check the path.'
    if os.path.exists(path):
        return f'write ./{path} for that of the current directory.'
    return 'set LM_DATA to the folder of the data sets (see docs/data.md), or give an absolute path.'


def read(path, kind):
    """Returns the bytes of the local file at `locate(path)`; errors call it a `kind`, e.g. 'tokenizer.json'."""
    place = locate(path)
    if '://' in place:
        raise Error(f'a {kind} is read from a local disk, not from {place}; copy it and give its absolute path.')
    try:
        if os.path.exists(place) and not os.path.isfile(place):
            raise OSError(0, 'it is no file')  # a FIFO would never end
        return pathlib.Path(place).read_bytes()
    except (OSError, ValueError) as error:
        raise Error(f'cannot read the {kind} {path!r} at {os.path.abspath(place)}: '
                    f'{getattr(error, "strerror", error)}; '
                    f'{remedy(path)}') from error
