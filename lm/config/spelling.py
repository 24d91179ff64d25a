"""Values as the text of an override, without defaults: Rope(base=500.0, factor=1.0) -> 'Rope(base=500.0)'."""

from __future__ import annotations

import dataclasses

from lm.config.annotations import is_component


def spelled(value):
    """Returns the text that an override reads as `value`.

    Of a component it has the fields that differ from their defaults; where none does its name alone: 'Rope'.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, (tuple, list)) and value and all(isinstance(item, (str, int, float)) for item in value):
        return ','.join(map(str, value))
    text = _nested(value)
    return text.removesuffix('()') if is_component(value) else text


def _nested(value):
    """Returns a value as Python would write it, inside the brackets of a component or a tuple."""
    if callable(value) and hasattr(value, '__qualname__'):
        return value.__qualname__
    if is_component(value):
        changed = [f'{f.name}={_nested(inner)}' for f in dataclasses.fields(value) if f.init
                   for inner in [getattr(value, f.name)] if not _is_default(f, inner)]
        return f'{type(value).__name__}({", ".join(changed)})'
    if isinstance(value, (tuple, list)):
        items = ', '.join(map(_nested, value))
        return f'({items},)' if len(value) == 1 else f'({items})'
    if isinstance(value, dict):
        return '{' + ', '.join(f'{name!r}: {_nested(inner)}' for name, inner in value.items()) + '}'
    return repr(value)


def _is_default(field, value):
    if field.default is not dataclasses.MISSING:
        return field.default == value
    return field.default_factory is not dataclasses.MISSING and field.default_factory() == value
