"""One value against one annotation: `fit('6', int, 'model.depth') -> 6`, or an error with a remedy."""

from __future__ import annotations

import collections.abc
import contextlib
import dataclasses
import enum
import functools
import inspect
import operator
import pathlib
import traceback
import types
import typing

from lm.config.annotations import (
    FLOAT32,
    INT64,
    MAPPINGS,
    SCALARS,
    SEQUENCES,
    Error,
    candidates,
    close,
    default,
    example,
    hints,
    is_component,
    kind_of,
    message,
    mismatch,
    printed,
)
from lm.config.literals import Call, Text, closing, read

EXPERIMENT = 'experiment'  # the module, in a record, of what an experiment file defines
WORDS = {bool: {'true': True, 'yes': True, 'on': True, '1': True, 'false': False, 'no': False, 'off': False,
                '0': False},
         type(None): {'none': None, 'null': None}}


def fit(value, hint, key, current=None):
    """Returns `value` as the type that the annotation `hint` asks for, reading it first if it is text.

    Raises `Error` naming `key`, the value and a remedy: the nearest choice, or the `current` value.
    """
    hint = getattr(hint, '__value__', None) or getattr(hint, '__supertype__', None) or hint or type(None)
    kind = kind_of(hint)
    if kind is typing.Annotated:
        return _fit_number(value, hint, key, current)
    if hint in (typing.Any, object) or isinstance(hint, typing.TypeVar):
        return _fit_anything(value, key, current)
    if kind in (typing.Union, types.UnionType):
        return _fit_union(value, hint, key, current)
    if kind is typing.Literal:
        return _fit_choice(value, typing.get_args(hint), key)
    if kind in SCALARS:
        return _fit_scalar(value, kind, key, current)
    if kind in SEQUENCES:
        return _fit_sequence(value, hint, key, current)
    if kind in MAPPINGS:
        return _fit_mapping(value, hint, key, current)
    if kind is pathlib.Path and isinstance(value, str):
        return pathlib.Path(value)
    if isinstance(kind, type) and issubclass(kind, enum.Enum) and isinstance(value, str):
        return kind[_fit_choice(value, tuple(kind.__members__), key)]
    return _fit_component(value, (kind,), key, current)


def verify(value, hint, key, field):
    """Raises `Error` unless `value`, which was not read from text, is what the annotation `hint` of a field asks for.

    The default of the dataclass's `field` is the remedy where there is one.
    """
    with contextlib.suppress(Error):
        fitted = fit(value, hint, key)
        if fitted is value or fitted == value:  # unlike text of a number, or a list for a tuple
            return
    fit(value, hint, key, default(field))
    raise mismatch(value, hint, key, default(field))


def made(key, make, *args, **fields):
    """Returns make(*args, **fields), with a refused value reported as an `Error` that begins with `key`.

    So is whatever the code of an experiment file raises; of lm itself another exception is a bug and stays.
    """
    try:
        return make(*args, **fields)
    except Error:
        raise
    except Exception as error:
        own = (frame.f_globals.get('__name__', '') for frame, _ in traceback.walk_tb(error.__traceback__))
        if not isinstance(error, ValueError) and not any(name.startswith(f'{EXPERIMENT}@') for name in own):
            raise
        text = message(error) if isinstance(error, ValueError) else f'{type(error).__name__}: {message(error)}'
        raise Error(f'{key}: {text}' if key else text) from error


def _plain(value, key):
    match value:
        case Call():
            raise Error(f'{key}={printed(value)} calls {value.name!r}, but no component fits here; try a number.')
        case str():
            return str(value)
        case tuple() | list() | set():
            return type(value)(_plain(item, key) for item in value)
        case dict():
            return {_plain(name, key): _plain(item, key) for name, item in value.items()}
    return value


def _fit_anything(value, key, current):
    if not isinstance(value, Text):
        return value
    return _fit_component(value, (), key, current) if is_component(current) else _plain(read(value), key)


def _fit_scalar(value, kind, key, current):
    if isinstance(value, str) and kind is not str:
        value = _scalar(value.strip(), kind)
    if isinstance(value, str) and kind is str:
        return str(value)
    if type(value) is not kind and not (type(value) is int and kind is float):
        raise mismatch(value, kind, key, current)
    if kind is float and value and not FLOAT32[0] <= abs(value) <= FLOAT32[1]:
        raise Error(f'{key}={printed(value)} is no number in float32; try {key}={example(kind, current)}.')
    if kind is int and not -INT64 <= value <= INT64:
        raise Error(f'{key}={printed(value)} is not an int of 64 bits; try {key}={example(kind, current)}.')
    return float(value) if kind is float else value


def _fit_number(value, hint, key, current):
    """Returns `value` as the number that an annotation `Annotated[float, Interval(0, 1)]` takes."""
    kind, *conditions = typing.get_args(hint)
    number = fit(value, kind, key, current)
    if all(number in condition for condition in conditions):
        return number
    raise mismatch(value, hint, key, current)


def _scalar(text, kind):
    if kind in WORDS:
        return WORDS[kind].get(text.lower(), text)
    try:
        rounded = kind is int and 'e' in text.lower() and float(text).is_integer()
        return int(float(text)) if rounded else kind(text)
    except (ValueError, OverflowError):
        return text


def _fit_choice(value, choices, key):
    for choice in choices:
        same_kind = type(value) is type(choice) or isinstance(value, Text)
        if same_kind and printed(value).lower() == str(choice).lower():
            return choice
    near = close(printed(value), choices)
    ordered = near + [choice for choice in choices if choice not in near]
    raise Error(f'{key}={printed(value)} is not one of {", ".join(map(str, ordered))}; try {key}={ordered[0]}.')


def _fit_union(value, hint, key, current):
    """Returns `value` as the first member of the union that takes it, text first as the literal that it spells.

    Text becomes a `str` only where it is quoted or no other member takes it: for `int | str`, 12 is an int.
    """
    spelled = read(value) if isinstance(value, Text) else value
    may_be_text = isinstance(value, Text) and str in typing.get_args(hint)
    if may_be_text and type(spelled) is str:
        return spelled
    members = _members_besides_text(hint, spelled) if may_be_text else typing.get_args(hint)
    for reading in [value] if isinstance(spelled, (Text, Call)) else [spelled, value]:
        for member in sorted(members, key=lambda m: kind_of(m) is not type(reading)):
            with contextlib.suppress(Error):
                return fit(reading, member, key, current)
    components = tuple(m for m in members if isinstance(m, type) and m not in SCALARS and m not in SEQUENCES)
    names_component = isinstance(spelled, Call) or (_is_name(spelled) and not may_be_text)
    if components and names_component:
        return _fit_component(spelled, components, key, current)  # raises what is wrong with it
    if may_be_text:
        return str(value)
    if components:
        _check_brackets(spelled, key)
    choices = [choice for m in members if kind_of(m) is typing.Literal for choice in typing.get_args(m)]
    if choices and isinstance(value, str):
        return _fit_choice(value, choices, key)
    raise mismatch(value, hint, key, current)


def _members_besides_text(hint, spelled):
    """Returns the other members of a union with `str` that text may become: sequences only where it spells one.

    Text without commas or brackets would fit `tuple[str, ...]` as its only item.
    """
    is_sequence = isinstance(spelled, (tuple, list, set))
    return [m for m in typing.get_args(hint) if m is not str and (is_sequence or kind_of(m) not in SEQUENCES)]


def _is_name(spelled):
    return isinstance(spelled, Text) and all(part.isidentifier() for part in spelled.split('.'))


def _fit_sequence(value, hint, key, current):
    items, args, make = value, typing.get_args(hint), SEQUENCES[kind_of(hint)]
    if isinstance(value, str):
        items = read(value) if any(c in value for c in '([{') else value
        items = [Text(part.strip()) for part in value.split(',') if part.strip()] if isinstance(items, str) else items
        items = (items,) if isinstance(items, Call) else items
    if not isinstance(items, (tuple, list, set, frozenset)):
        raise mismatch(value, hint, key, current)
    if not args or make is not tuple or args[1:] == (...,) or kind_of(hint) is not tuple:
        args = (args or (typing.Any,))[:1] * len(items)
    if len(args) != len(items):
        raise Error(f'{key}={printed(value)} has {len(items)} items, not {len(args)}; '
                    f'try {key}={printed(example(hint, current))}.')
    return make(fit(item, arg, f'{key}.{i}') for i, (item, arg) in enumerate(zip(items, args, strict=True)))


def _fit_mapping(value, hint, key, current):
    items = read(value) if isinstance(value, str) else value
    if not isinstance(items, collections.abc.Mapping):
        raise mismatch(value, hint, key, current)
    name_hint, item_hint = typing.get_args(hint) or (typing.Any, typing.Any)
    return {fit(n, name_hint, key): fit(item, item_hint, f'{key}.{n}') for n, item in items.items()}


def _fit_component(value, bases, key, current):
    """Returns `value` if it is an instance of one of `bases`, else the component that its text or `Call` builds."""
    if not isinstance(value, (str, Call)):
        if any(_takes(base, value) for base in bases):
            return value
        raise mismatch(value, functools.reduce(operator.or_, bases), key, current)
    spelled = read(value) if isinstance(value, str) else value
    _check_brackets(spelled, key)
    call = spelled if isinstance(spelled, Call) else Call(str(value), (), {})
    known = candidates(bases, current)
    name = call.name.rpartition('.')[2]
    named = [cls for cls in known if cls.__name__.lower() == name.lower()]
    named = [cls for cls in named if cls.__name__ == name] or named
    if all(cls.__module__.startswith(f'{EXPERIMENT}@') for cls in named):
        named = named[-1:]  # of files that were loaded one after the other, the newest is meant
    if len(named) > 1:
        raise Error(f'{key}={value} may be {" or ".join(f"{c.__module__}.{c.__name__}" for c in named)}; rename one.')
    if named:
        return _constructed(named[0], call, key)
    names = sorted({cls.__name__ for cls in known})
    near = close(name, names)
    remedy = f'did you mean {key}={near[0]}?' if near else f'there are {", ".join(names) or "no components for it"}.'
    raise Error(f'{key}={printed(value)} is not a component that fits here; {remedy}')


def _check_brackets(spelled, key):
    """Raises `Error` for text with brackets that is no constructor expression."""
    if not isinstance(spelled, Text) or '(' not in spelled:
        return
    if missing := closing(spelled):
        raise Error(f'{key}={spelled} lacks {missing!r} at its end; try {key}={spelled}{missing}.')
    raise Error(f'{key}={spelled} is no constructor expression; write it as Name(field=value), with its brackets in '
                'pairs and literals as values.')


def _takes(base, value):
    if getattr(base, '_is_protocol', False):
        return True
    if base is collections.abc.Callable:
        return callable(value)
    return isinstance(base, type) and isinstance(value, base)


def _constructed(cls, call, key):
    signature, known = inspect.signature(cls), hints(cls)
    names = [f.name for f in dataclasses.fields(cls) if f.init]
    for name in call.fields:
        if name not in names:
            near = (close(name, names) or names or ['nothing'])[0]
            raise Error(f'no field {name!r} in {key}={call}; did you mean {near!r}?')
    try:
        arguments = signature.bind_partial(*call.args, **call.fields).arguments
    except TypeError as error:
        raise Error(f'{key}={call}: {error}; {cls.__name__} has {", ".join(names)}.') from None
    lacking = [n for n, p in signature.parameters.items() if p.default is p.empty and n not in arguments]
    if lacking:
        filled = ', '.join(f'{n}={example(known[n], None)}' for n in lacking)
        raise Error(f'{key}={call} lacks {", ".join(lacking)}; try {key}={cls.__name__}({filled}).')
    defaults = {f.name: default(f) for f in dataclasses.fields(cls) if f.name in arguments}
    fields = {name: fit(v, known[name], f'{key}.{name}', defaults[name]) for name, v in arguments.items()}
    return made(key, cls, **fields)
