"""Configurations as JSON: dump, build (its inverse) and fingerprint."""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import importlib
import json
import math
import pathlib
import re
import sys

from lm.config.annotations import Error, close, hints, is_component, printed
from lm.config.legacy import upgraded
from lm.config.overrides import join
from lm.config.values import made, verify

TYPE = re.compile(r'[^\W\d]\w*([.][^\W\d]\w*)*:[^\W\d]\w*([.][^\W\d]\w*)*')  # module:QualName
TAGS = {'tuple': tuple, 'set': set, 'frozenset': frozenset, 'dict': dict, 'float': float, 'path': pathlib.Path}
TRUST = 'add --trust where you trust who wrote it'
REMEDY = 'restore the record from a copy, or use the version that wrote it'


def dump(value):
    """Returns `value` as JSON-able data that `build` turns back: dataclasses as {'type': 'module:Name', fields...}.

    What JSON lacks is tagged with a type that has no colon: tuple, set, dict (with other keys than text), float (not
    finite), path, object (a class, function or enum member by name). Raises `Error` for anything else.
    """
    match value:
        case enum.Enum():
            return {'type': 'object', 'value': f'{name_of(type(value))}.{value.name}'}
        case None | bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else {'type': 'float', 'value': str(value)}
        case list():
            return [dump(item) for item in value]
        case tuple():
            return {'type': 'tuple', 'value': [dump(item) for item in value]}
        case set() | frozenset():
            return {'type': type(value).__name__, 'value': sorted(map(dump, value), key=json.dumps)}
        case dict():
            return _dump_dict(value)
        case pathlib.PurePath():
            return {'type': 'path', 'value': str(value)}
    if is_component(value):
        return {'type': name_of(type(value))} | _dump_fields(value)
    if callable(value) and hasattr(value, '__qualname__') and '<' not in value.__qualname__:
        return {'type': 'object', 'value': name_of(value)}
    raise Error(f'{value!r} is of type {type(value).__name__}, which cannot be recorded; '
                'write it as a number, a text, a tuple or a dataclass.')


def restore(dumped, module=None):
    """Returns the value that was dumped; `module(name)` returns a module that its types are from.

    Without it only types of lm are known, of them components (frozen dataclasses) and members of enums: a record that
    somebody else wrote executes nothing. Records of older versions are upgraded first, and fields are checked as those
    typed. Raises `Error` where one does not fit, where a type or a field no longer exists, and for what `dump` never
    wrote.
    """
    try:
        return _restored(upgraded(dumped), module, '')
    except RecursionError:
        raise Error(f'the record is nested too deep; {REMEDY}.') from None


def _restored(dumped, module, key):
    if isinstance(dumped, list):
        return [_restored(item, module, join(key, str(index))) for index, item in enumerate(dumped)]
    if not isinstance(dumped, dict):
        return dumped
    if 'type' not in dumped:
        return {name: _restored(item, module, join(key, name)) for name, item in dumped.items()}
    match dumped:
        case {'type': 'float' | 'path' as tag, 'value': str(content), **rest} if not rest:
            return _untagged(tag, content, key)
        case {'type': 'dict' as tag, 'value': list(content), **rest} if not rest:
            pairs = [_restored(item, module, key) for item in content]
            if all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
                return _untagged(tag, pairs, key)
        case {'type': 'tuple' | 'set' | 'frozenset' as tag, 'value': list(content), **rest} if not rest:
            return _untagged(tag, _restored(content, module, key), key)
        case {'type': 'object', 'value': str(name), **rest} if not rest and TYPE.fullmatch(name):
            named = _named(name, module)
            if module is None and not isinstance(named, enum.Enum):
                raise Error(f'{name} is a function or class, which a record alone does not choose; {TRUST}.')
            return named
        case {'type': str(name)} if TYPE.fullmatch(name):
            return _restore_component(dumped, module, key)
    raise Error(f'{key or "the record"}={printed(dumped)} is nothing that lm records; {REMEDY}.')


def _untagged(tag, content, key):
    try:
        return TAGS[tag](content)
    except (TypeError, ValueError) as error:  # an item that is not hashable, text that is no number
        raise Error(f'{key or "the record"} is no {tag} ({error}); {REMEDY}.') from error


def fingerprint(value):
    """Returns 16 hex digits of the canonical dump of `value`, in which 1 and 1.0 are the same number."""
    canonical = json.dumps(_canonical(dump(value)), sort_keys=True, separators=(',', ':'))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def name_of(named):
    """Returns 'module:QualName' of a class or function, with the module 'experiment' for any experiment file's own.

    The module is the outermost package that exports it under its own name, as an experiment imports it: 'lm.nn:Rope'.
    """
    module = named.__module__.partition('@')[0]
    parts = module.split('.')
    packages = ('.'.join(parts[:length]) for length in range(1, len(parts)))
    public = (name for name in packages if getattr(sys.modules.get(name), named.__qualname__, None) is named)
    return f'{next(public, module)}:{named.__qualname__}'


def _dump_fields(value):
    fields = {f.name: dump(getattr(value, f.name)) for f in dataclasses.fields(value) if f.init}
    if 'type' in fields:
        raise Error(f'{type(value).__name__} has a field named type, the key of its own name in a record; rename it.')
    return fields


def _dump_dict(value):
    if all(isinstance(name, str) for name in value) and 'type' not in value:
        return {name: dump(item) for name, item in value.items()}
    return {'type': 'dict', 'value': [[dump(name), dump(item)] for name, item in value.items()]}


def _restore_component(dumped, module, key):
    cls = _named(dumped['type'], module)
    if not (isinstance(cls, type) and dataclasses.is_dataclass(cls)):
        raise Error(f'{dumped["type"]} is not a dataclass; the record was written by another version.')
    if module is None and not cls.__dataclass_params__.frozen:
        raise Error(f'{dumped["type"]} is no component of an experiment; the record was not written by lm.')
    fields = {name: _restored(item, module, join(key, name)) for name, item in dumped.items() if name != 'type'}
    if module is None and fields.get('trust'):
        raise Error(f'{join(key, "trust")}=true, which a record alone does not choose; {TRUST}.')
    known = [f.name for f in dataclasses.fields(cls) if f.init]
    for name in fields:
        if name not in known:
            near = close(name, known) or known
            raise Error(f'{dumped["type"]} has no field {name!r}; its fields are {", ".join(near)}.')
    missing = [f.name for f in dataclasses.fields(cls) if f.init and f.name not in fields
               and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING]
    if missing:
        raise Error(f'{dumped["type"]} needs {", ".join(missing)}, not in the record; use the version that wrote it.')
    known = hints(cls)
    for field in dataclasses.fields(cls):
        if field.name in fields:
            verify(fields[field.name], known[field.name], join(key, field.name), field)
    return made(key, cls, **fields)


def _named(name, module):
    where, _, path = name.partition(':')
    if module is None and where.partition('.')[0] != 'lm':
        raise Error(f'{name} is code beside lm, which a record alone does not execute; {TRUST}.')
    try:
        named = (module or importlib.import_module)(where)
        for part in path.split('.'):
            named = getattr(named, part)
    except Error:
        raise
    except (ImportError, AttributeError, ValueError) as error:
        raise Error(f'{name} does not exist here ({error}); use the version that wrote the record.') from error
    return named


def _canonical(dumped):
    if isinstance(dumped, list):
        return [_canonical(item) for item in dumped]
    if isinstance(dumped, dict):
        return {name: _canonical(item) for name, item in dumped.items()}
    return int(dumped) if isinstance(dumped, float) and dumped.is_integer() else dumped
