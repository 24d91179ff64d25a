"""Files that lm writes and reads back, atomically and as JSON of a known shape; imports of what may be missing."""
import contextlib
import errno
import functools
import importlib
import json
import os
import re
import stat
import sys
import typing
import zlib

from lm.config.annotations import Error, described

_NAMED = 200  # characters of the name of a misfit
_SEAL = ', "crc32": '
_LONG = re.compile('[0-9]{20}')
_DEPTH = 100  # levels of nesting; records of lm have less, and what walks them recurses


class Damaged(Error):
    """A file is not what was written: `fact` says which and how; the message ends in a remedy."""

    def __init__(self, fact, remedy):
        super().__init__(f'{fact}; {remedy}')
        self.fact = fact


def replace(path, content):
    """Writes a text or bytes to a Path atomically: a reader sees the old content or the new, never half of it."""
    temporary = path.with_name(f'.{path.name}.{os.getpid()}')
    temporary.write_bytes(content.encode() if isinstance(content, str) else content)
    os.replace(temporary, path)


def make_directory(path):
    """Creates the directory at a Path and those above it where they are missing, of which there may be a thousand:
    `mkdir(parents=True)` recurses into each.
    """
    missing = []
    while not os.path.isdir(path):
        try:
            path.mkdir(exist_ok=True)
        except FileNotFoundError:
            if path.parent == path:
                raise
            missing.append(path)
            path = path.parent
    for inner in reversed(missing):
        inner.mkdir(exist_ok=True)


def unblocked(path, flags):
    """Opens a file descriptor, as the `opener` of open(), without waiting: the other end of a FIFO may never come."""
    return os.open(path, flags | os.O_NONBLOCK, 0o666)


def content(path):
    """Returns the bytes of a regular file; raises OSError for anything else, of which reading may never end."""
    with open(path, 'rb', opener=unblocked) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, 'it is no regular file')
        return file.read()


@functools.cache
def warn(line):
    """Prints a line of warning to stderr, each once in a process."""
    with contextlib.suppress(OSError):  # what a warning is about goes on
        print(f'lm: {" ".join(line.splitlines())}', file=sys.stderr, flush=True)


def read_json(path, shape, remedy, optional=False):
    """Returns the JSON value of the file at a Path; None where there is none and it is `optional`.

    `shape` is as for parse_json. Raises Error, with the file, what is wrong with it and `remedy`, where it cannot be
    read, of them Damaged where it holds anything else.
    """
    try:
        return parse_json(content(path), shape)
    except OSError as error:
        if optional and not os.path.lexists(path):
            return None
        raise Error(f'cannot read {path}: {error.strerror}; {remedy}') from error
    except ValueError as error:
        raise Damaged(f'{path} is damaged ({error})', remedy) from error


def sealed(text):
    """Returns the text of a JSON object with an item crc32 behind the others: the checksum of the text before it.

    parse_json compares and removes it. It finds a flipped bit that leaves a number a number.
    """
    before = text.rstrip().removesuffix('}').rstrip()
    if before == '{':
        raise ValueError('an empty object has no item to seal')
    return f'{before}{_SEAL}{zlib.crc32(before.encode())}}}'


def parse_json(text, shape):
    """Returns the JSON value of a text or bytes; raises ValueError that says what is wrong with it.

    `shape` is a type or a union of types, [shape] of every item of a list, or {name: shape} of the items that an object
    must have beside others: `{'step': int, 'losses': [float | int]}`. An item of a name that ends in ? may be absent,
    the shape of the name `str` is that of every item, and a tuple is of shapes of which one must fit.
    """
    try:
        text = text.decode() if isinstance(text, bytes) else text
        value = json.loads(text, parse_int=_integer if _LONG.search(text) else None)
    except UnicodeDecodeError as error:
        raise ValueError(f'not UTF-8 at byte {error.start}') from error
    except json.JSONDecodeError as error:
        raise ValueError(f'no JSON at line {error.lineno}: {error.msg}') from error
    except RecursionError:
        raise ValueError(f'nested over {_DEPTH} deep') from None
    if text.count('[') + text.count('{') > _DEPTH and _depth(value) > _DEPTH:
        raise ValueError(f'nested over {_DEPTH} deep')
    if isinstance(value, dict) and 'crc32' in value:
        before, seal, _ = text.rpartition(_SEAL)
        if not seal or zlib.crc32(before.encode(errors='replace')) != value.pop('crc32'):
            raise ValueError('crc32 is the checksum of another content; after an edit by hand, remove that item')
    elif isinstance(value, dict) and (name := _seal_of_another_name(text, value)):
        raise ValueError(f'{name!r} is the checksum of the content and should be named crc32')
    if misfit := _misfit(value, shape, ''):
        raise ValueError(misfit)
    return value


def _seal_of_another_name(text, value):
    """Returns the name of the last item of a JSON object where it is the checksum of the text before it, else ''."""
    name = next(reversed(value), '')
    before, _, _ = text.rpartition(', "')
    return name if before and value[name] == zlib.crc32(before.encode(errors='replace')) else ''


def _integer(digits):
    if len(digits) > 20:  # more than 64 bits and a sign, which no float and no array takes
        raise ValueError(f'a whole number of {len(digits)} digits')
    return int(digits)


def _depth(value):
    """Returns how deep the lists and objects of a JSON value are nested, without recursion."""
    depth, level = 0, [value]
    while level := [item for inner in level if isinstance(inner, list | dict)
                    for item in (inner.values() if isinstance(inner, dict) else inner)]:
        depth += 1
    return depth


def _misfit(value, shape, name):
    """Returns in words where a JSON value is not of a shape, '' where it is."""
    if isinstance(shape, tuple):
        misfits = [_misfit(value, choice, name) for choice in shape]
        return misfits[0] if all(misfits) else ''
    if isinstance(shape, list) and isinstance(value, list):
        return next(filter(None, (_misfit(item, shape[0], f'{name}[{i}]') for i, item in enumerate(value))), '')
    if isinstance(shape, dict) and isinstance(value, dict):
        return next(filter(None, (_item_misfit(value, key, inner, name) for key, inner in shape.items())), '')
    expected = type(shape) if isinstance(shape, list | dict) else shape
    if isinstance(value, expected) and (type(value) is not bool or bool in (expected, *typing.get_args(expected))):
        return ''
    return f'{name or "it"} is {type(value).__name__}, not {described(expected)}'


def _item_misfit(value, key, shape, name):
    """Returns in words where the item of an object that has the name `key`, or each for `str`, is not of a shape."""
    if key is not str and key.removesuffix('?') not in value:
        return '' if key.endswith('?') else f'no {key!r} in {name or "it"}'
    names = value if key is str else [key.removesuffix('?')]
    return next(filter(None, (_misfit(value[item], shape, f'{name}.{item}'.strip('.')[:_NAMED])
                              for item in names)), '')


def require(module, purpose, package):
    """Returns the imported `module`; raises Error naming `package` to install where it is missing."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise Error(f'{purpose} needs the module {error.name or module}, which is not installed; '
                    f'run: pip install {package}') from error
