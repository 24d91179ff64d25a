"""Configurations as trees of dotted keys: flatten, diff, and override, each value checked against its annotation."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import typing

from lm.config import remedies
from lm.config.annotations import MAPPINGS, Error, close, hints, is_component, kind_of, printed
from lm.config.values import fit, made, verify


class Absent:
    """The value of a key that one of two configurations lacks."""

    def __repr__(self):
        return '(absent)'


ABSENT = Absent()


class Unknown(Exception):
    """A dotted key that names no field; `override` reports it with the nearest right one."""


def flatten(config):
    """Returns {dotted key: leaf}; a component or dict with nothing inside is a leaf itself."""
    return {key: value for key, value in branches(config) if not children(value)}


def diff(a, b):
    """Returns {dotted key: (value in a, value in b)} where they differ, a whole component where its type does.

    Types are compared by name: a file that is loaded twice defines the same types twice.
    """
    same_type = type(a).__qualname__ == type(b).__qualname__
    inside_a, inside_b = children(a), children(b)
    if same_type and (inside_a or inside_b):
        return {join(name, key): pair for name in inside_a | inside_b
                for key, pair in diff(inside_a.get(name, ABSENT), inside_b.get(name, ABSENT)).items()}
    return {} if a == b or (same_type and is_component(a)) else {'': (a, b)}


def override(config, changes):
    """Returns `config` with every dotted key of `changes` set, all at once, so that cross-field checks see the result.

    Values are Python values, components, or text from a shell. Raises `Error` for a key or a value that does not fit.
    """
    def applied(further):
        return _changed(config, type(config), '', {**changes, **further})
    try:
        return applied({})
    except Error as fault:
        raise remedies.tried(fault, [*changes, *(key for key, _ in branches(config))], applied) from fault
    except Unknown as unknown:
        missing = str(unknown)
        asked = next((key for key in changes if f'{key}.'.startswith(f'{missing}.')), missing)
        if now := moved(config, asked):
            raise Error(f'no field {asked!r}; it is {now} now.') from None
        raise Error(_unknown_field(missing, [key for key, _ in branches(config)])) from None


def with_traced_fields(value, changes):
    """Returns a component with fields at dotted keys replaced, unchecked: a traced number has no value to check."""
    groups = {}
    for key, change in changes.items():
        name, _, rest = key.partition('.')
        groups.setdefault(name, {})[rest] = change
    new = copy.copy(value)
    for name, group in groups.items():
        object.__setattr__(new, name, group[''] if '' in group else with_traced_fields(getattr(value, name), group))
    return new


def moved(config, key):
    """Returns the present dotted key of what an older version had at `key`, '' where no component on the way says.

    A component's class may say so by MOVED: {old dotted key inside it: new one}; what is inside an old key moves along.
    """
    names, value = key.split('.'), config
    for depth, name in enumerate(names):
        rest = '.'.join(names[depth:])
        for old, new in getattr(type(value), 'MOVED', {}).items():
            if f'{rest}.'.startswith(f'{old}.'):
                now = '.'.join([*names[:depth], new]) + rest[len(old):]
                return moved(config, now) or now
        if name not in children(value):
            return ''
        value = children(value)[name]
    return ''


def check(component, key=''):
    """Raises `Error` where a field of a component does not fit its annotation: Python itself never looks.

    A component calls it first in its `__post_init__`, so that it is never built of what does not fit.
    """
    known = hints(type(component))
    for field in dataclasses.fields(component):
        if field.init:
            verify(getattr(component, field.name), known[field.name], join(key, field.name), field)


def check_inside(config):
    """Raises `Error` where a field does not fit, at any depth: not every component of a user's checks itself."""
    for key, value in [('', config), *branches(config)]:
        if is_component(value):
            check(value, key)


def children(value):
    """Returns {name: value} of what is inside a dataclass, a dict or a sequence of dataclasses, and {} of a leaf.

    A dict is a leaf where dotted keys would not tell its items apart.
    """
    if is_component(value):
        return {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.init}
    if isinstance(value, dict) and all(isinstance(name, str) and name for name in value):
        starts = (itertools.accumulate(name.split('.')[:-1], '{}.{}'.format) for name in value)
        nested = any(start in value for start in itertools.chain.from_iterable(starts))
        return {} if nested else dict(value)
    if isinstance(value, (tuple, list)) and any(is_component(item) for item in value):
        return {str(index): item for index, item in enumerate(value)}
    return {}


def branches(value, key=''):
    """Yields (dotted key, value) of everything inside `value`, a parent before its children."""
    for name, child in children(value).items():
        yield join(key, name), child
        yield from branches(child, join(key, name))


def join(key, name):
    """Returns the dotted key of `name` inside `key`; either may be empty."""
    return f'{key}.{name}' if key and name else key or name


def _unknown_field(key, known):
    parent, _, name = key.rpartition('.')
    siblings = {k.rpartition('.')[2]: k for k in known if k.rpartition('.')[0] == parent}
    near = [siblings[n] for n in close(name, siblings)]
    near = near or [k for k in known if k.rpartition('.')[2] == name] or close(key, known)
    if near:
        return f'no field {key!r}; did you mean {near[0]!r}?'
    return f'no field {key!r}; {parent or "the experiment"} has {", ".join(siblings) or "no fields"}.'


def _changed(value, hint, key, changes):
    """Returns `value` with {key inside it: change} applied; the key '' replaces the value before the others apply."""
    if '' in changes:
        value = fit(changes[''], hint, key, value)
    inner = {rest: change for rest, change in changes.items() if rest}
    if not inner:
        return value
    if isinstance(value, dict):
        return _changed_dict(value, hint, key, inner)
    inside, groups = children(value), {}
    for rest, change in inner.items():
        name, _, rest = rest.partition('.')
        if not inside:
            raise Error(f'{key}={printed(value)} has no field {name!r} inside; set {key} itself.')
        if name not in inside:
            raise Unknown(join(key, name))
        groups.setdefault(name, {})[rest] = change
    if not is_component(value):
        return type(value)(_changed(v, typing.Any, join(key, n), groups.get(n, {})) for n, v in inside.items())
    known = hints(type(value))
    fields = {name: _changed(inside[name], known[name], join(key, name), group) for name, group in groups.items()}
    return made(key, dataclasses.replace, value, **fields)


def _changed_dict(value, hint, key, changes):
    """Returns `value` with items set; a name may hold dots (`{'mlp.*': 0.1}`), so the longest known one wins."""
    mapping = next((m for m in (hint, *typing.get_args(hint)) if kind_of(m) in MAPPINGS), dict)
    item_hint = (typing.get_args(mapping) or (typing.Any,))[-1]
    groups = {}
    for rest, change in changes.items():
        known = [name for name in value if rest == name or rest.startswith(name + '.')]
        name = max(known, key=len, default=rest)
        groups.setdefault(name, {})[rest[len(name) + 1:]] = change
    return value | {n: _changed(value.get(n), item_hint, join(key, n), group) for n, group in groups.items()}
