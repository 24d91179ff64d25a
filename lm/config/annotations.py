"""Annotations in words, `described(int | None) -> 'an int or None'`, and `Error`, the one exception for a user."""

from __future__ import annotations

import collections.abc
import dataclasses
import difflib
import functools
import inspect
import math
import sys
import types
import typing

SCALARS = {int: 'an int', float: 'a float', bool: 'a bool', str: 'a str', type(None): 'None'}
EXAMPLES = {int: '1', float: '0.1', bool: 'true', str: 'text', type(None): 'None'}
SEQUENCES = {tuple: tuple, list: list, set: set, frozenset: frozenset, collections.abc.Sequence: tuple}
MAPPINGS = (dict, collections.abc.Mapping)
HEAD, TAIL = 600, 300  # characters of a longer message that are kept: the fact and the remedy
SLACK = 100  # so many more are no reason to cut, above all a message that was cut before
FLOAT32 = 2.0 ** -126, 2.0 ** 128 - 2.0 ** 104  # sizes of normal numbers; settings are computed in it
INT64, INT32 = 2 ** 63 - 1, 2 ** 31 - 1


class Error(ValueError):
    """A user's mistake in one line: fact, value, remedy. The middle of one over HEAD + TAIL characters is left out."""

    def __init__(self, message):
        super().__init__(shortened(' '.join(str(message).splitlines())))


@dataclasses.dataclass(frozen=True)
class Interval:
    """The numbers from `low` to `high` that `Annotated[float, Interval(0, 1, '[)')]` takes; a round end is open."""

    low: float
    high: float = math.inf
    ends: str = '[]'

    def __contains__(self, number):
        return (self.low <= number <= self.high and (number != self.low or self.ends[0] == '[')
                and (number != self.high or self.ends[1] == ']'))

    def __str__(self):
        if self.high == math.inf:
            return f'of {self.low} or more' if self.ends[0] == '[' else f'above {self.low}'
        return f'in {self.ends[0]}{self.low}, {self.high}{self.ends[1]}'


Count = typing.Annotated[int, Interval(0, INT32)]
Size = typing.Annotated[int, Interval(1, INT32)]
NonNegative = typing.Annotated[float, Interval(0)]
Positive = typing.Annotated[float, Interval(0, ends='(]')]
Fraction = typing.Annotated[float, Interval(0, 1)]
FractionBelowOne = typing.Annotated[float, Interval(0, 1, '[)')]


def shortened(line):
    """Returns a line, or its beginning and end with how many characters are left out between them."""
    cut = len(line) - HEAD - TAIL
    return line if cut <= SLACK else f'{line[:HEAD]} [... {cut:,} more characters ...] {line[-TAIL:]}'


def message(fault):
    """Returns what an exception says, or its type where it says nothing or cannot."""
    try:
        return str(fault).strip() or type(fault).__name__
    except (Exception, SystemExit, GeneratorExit):
        return type(fault).__name__


def first_line(fault):
    """Returns the first line of what an exception says."""
    return shortened(message(fault).splitlines()[0])


def printed(value):
    """Returns a value as text for a message: its own, or Python's for it."""
    try:
        return value if isinstance(value, str) else repr(value)
    except Exception:  # an int of over 4,300 digits, nesting over 1,000 deep, or a __repr__ that fails
        return f'<{type(value).__name__} that cannot be printed>'


def close(word, choices):
    """Returns those of `choices` that `word` may be a misspelling of, the nearest first."""
    by_lower = {str(choice).lower(): choice for choice in choices}
    return [by_lower[name] for name in difflib.get_close_matches(word.lower(), by_lower, n=3, cutoff=0.55)]


@functools.cache
def hints(cls):
    """Returns {field: annotation} of a dataclass, with `Any` for an annotation whose names cannot be resolved."""
    try:
        return typing.get_type_hints(cls, include_extras=True)
    except (NameError, AttributeError, TypeError, SyntaxError):
        return {f.name: typing.Any if isinstance(f.type, str) else f.type for f in dataclasses.fields(cls)}


def default(field):
    """Returns the value that a field of a dataclass has where none is given, None where one must be."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return None if field.default is dataclasses.MISSING else field.default


def is_component(value):
    """Returns whether `value` is an instance of a dataclass."""
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def kind_of(hint):
    """Returns the bare type of an annotation: `tuple` of `tuple[int, ...]`."""
    return typing.get_origin(hint) or hint


def candidates(bases, current):
    """Returns the dataclasses that may replace `current`: `bases` and their subclasses, else those of its module."""
    classes = []
    queue = [base for base in bases if isinstance(base, type) and base is not object]
    while queue:
        cls = queue.pop(0)
        queue = [sub for sub in type.__subclasses__(cls) if sub not in classes + queue] + queue
        classes.append(cls)
    if is_component(current) and not any(dataclasses.is_dataclass(cls) for cls in classes):
        classes = list(vars(sys.modules[type(current).__module__]).values())
    return [cls for cls in classes if isinstance(cls, type) and dataclasses.is_dataclass(cls) and _can_be_chosen(cls)]


def _can_be_chosen(cls):
    """Returns whether a user can name a class: not if it is private, abstract, or one that its module replaced."""
    module = sys.modules.get(cls.__module__)
    replaced = '<locals>' not in cls.__qualname__ and getattr(module, cls.__name__, cls) is not cls
    return not (replaced or cls.__name__.startswith('_') or inspect.isabstract(cls))


def mismatch(value, hint, key, current):
    """Returns the `Error` that `value` does not fit `hint`, with a value that does."""
    return Error(f'{key}={printed(value)} is not {described(hint)}; try {key}={printed(example(hint, current))}.')


def described(hint):
    """Returns an annotation in words."""
    if kind_of(hint) is typing.Annotated:
        base, *conditions = typing.get_args(hint)
        return ' '.join([described(base), *map(str, conditions)])
    if kind_of(hint) in (typing.Union, types.UnionType):
        *most, last = [described(m) for m in typing.get_args(hint)]
        return f'{", ".join(most)} or {last}'
    if kind_of(hint) is typing.Literal:
        return f'one of {", ".join(map(str, typing.get_args(hint)))}'
    inside = ', '.join('...' if a is ... else described(a).split()[-1] for a in typing.get_args(hint))
    name = getattr(kind_of(hint), '__name__', str(hint))
    return SCALARS.get(hint) or f'a {name}' + (f' of {inside}' if inside else '')


def example(hint, current):
    """Returns a value, as text, that fits `hint`: the `current` one where there is one."""
    if current is not None and not is_component(current):
        return current
    first = next(iter(typing.get_args(hint)), None)
    if kind_of(hint) is typing.Annotated:
        return example(first, None)
    if kind_of(hint) in (typing.Union, types.UnionType):
        return example(first, None)
    if kind_of(hint) is typing.Literal:
        return first
    if kind_of(hint) in SEQUENCES:
        items = [a for a in typing.get_args(hint) if a is not ...]
        return ','.join(str(example(a, None)) for a in items) or '1,2'
    if kind_of(hint) in MAPPINGS:
        return '{}'
    classes = candidates((hint,), current)
    return EXAMPLES.get(hint) or (classes[0].__name__ if classes else 'None')
