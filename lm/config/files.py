"""Files that lm writes and reads back, atomically and as JSON of a known shape; imports of what may be missing."""
import importlib
import json
import os

from lm.config.annotations import Error, described

_DEPTH = 100  # levels of nesting; records of lm have less, and what walks them recurses


def replace(path, content):
    """Writes a text or bytes to a Path atomically: a reader sees the old content or the new, never half of it."""
    temporary = path.with_name(f'.{path.name}.{os.getpid()}')
    temporary.write_bytes(content.encode() if isinstance(content, str) else content)
    os.replace(temporary, path)


def read_json(path, shape, remedy):
    """Returns the JSON value of the file at a Path.

    `shape` is as for parse_json. Raises Error, with the file, what is wrong with it and `remedy`, where it cannot be
    read or holds anything else.
    """
    try:
        return parse_json(path.read_bytes(), shape)
    except OSError as error:
        raise Error(f'cannot read {path}: {error.strerror}; {remedy}') from error
    except ValueError as error:
        raise Error(f'{path} is damaged ({error}); {remedy}') from error


def parse_json(text, shape):
    """Returns the JSON value of a text or bytes; raises ValueError that says what is wrong with it.

    `shape` is a type or a union of types, [shape] of every item of a list, or {name: shape} of the items that an object
    must have beside others: `{'step': int, 'losses': [float | int]}`.
    """
    try:
        value = json.loads(text.decode() if isinstance(text, bytes) else text)
    except UnicodeDecodeError as error:
        raise ValueError(f'not UTF-8 at byte {error.start}') from error
    except json.JSONDecodeError as error:
        raise ValueError(f'no JSON at line {error.lineno}: {error.msg}') from error
    except RecursionError:
        raise ValueError(f'nested over {_DEPTH} deep') from None
    if _depth(value) > _DEPTH:
        raise ValueError(f'nested over {_DEPTH} deep')
    if misfit := _misfit(value, shape, ''):
        raise ValueError(misfit)
    return value


def _depth(value):
    """Returns how deep the lists and objects of a JSON value are nested, without recursion."""
    depth, level = 0, [value]
    while level := [item for inner in level if isinstance(inner, list | dict)
                    for item in (inner.values() if isinstance(inner, dict) else inner)]:
        depth += 1
    return depth


def _misfit(value, shape, name):
    """Returns in words where a JSON value is not of a shape, '' where it is."""
    if isinstance(shape, list) and isinstance(value, list):
        return next(filter(None, (_misfit(item, shape[0], f'{name}[{i}]') for i, item in enumerate(value))), '')
    if isinstance(shape, dict) and isinstance(value, dict):
        return next(filter(None, (_misfit(value[key], inner, f'{name}.{key}'.strip('.')) if key in value
                                  else f'no {key!r} in {name or "it"}' for key, inner in shape.items())), '')
    expected = type(shape) if isinstance(shape, list | dict) else shape
    if isinstance(value, expected) and (type(value) is not bool or expected is bool):
        return ''
    return f'{name or "it"} is {type(value).__name__}, not {described(expected)}'


def require(module, purpose, package):
    """Returns the imported `module`; raises Error naming `package` to install where it is missing."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise Error(f'{purpose} needs the module {error.name or module}, which is not installed; '
                    f'run: pip install {package}') from error
