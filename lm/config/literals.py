"""Text from a shell as the Python literal or the constructor expression that it spells; nothing is evaluated."""
from __future__ import annotations

import ast
import dataclasses


class Text(str):
    """Text from a shell, still to be read as the type of its field."""


@dataclasses.dataclass(frozen=True, repr=False)
class Call:
    """A constructor expression that is parsed and not yet called: `Lion(peak=1e-4)`."""

    name: str
    args: tuple
    fields: dict

    def __repr__(self):
        inside = [str(a) for a in self.args] + [f'{name}={value}' for name, value in self.fields.items()]
        return f'{self.name}({", ".join(inside)})'


def read(text):
    """Returns the literal or the `Call` that `text` spells, names in it as `Text`; the text itself if none."""
    try:
        return _literal(ast.parse(text.strip(), mode='eval').body)
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):  # TypeError: a list as a key
        return Text(text)


def closing(text):
    """Returns the brackets that `text` lacks at its end: ')' of 'Lion(peak=1e-4'."""
    missing = ''
    for letter in text:
        if letter in '([{':
            missing = ')]}'['([{'.index(letter)] + missing
        elif missing.startswith(letter):
            missing = missing[1:]
    return missing


def _literal(node):
    match node:
        case ast.Constant(value):
            return value
        case ast.Name() | ast.Attribute():
            return Text(ast.unparse(node))
        case ast.Tuple(items) | ast.List(items) | ast.Set(items):
            make = {ast.Tuple: tuple, ast.List: list, ast.Set: set}[type(node)]
            return make(_literal(item) for item in items)
        case ast.Dict(names, items) if None not in names:
            return {_literal(name): _literal(item) for name, item in zip(names, items, strict=True)}
        case ast.UnaryOp(ast.USub() | ast.UAdd(), ast.Constant(value)) if type(value) in (int, float):
            return -value if isinstance(node.op, ast.USub) else value
        case ast.UnaryOp(ast.USub(), ast.Name(name)):
            return Text(f'-{name}')  # -inf, for its field to refuse
        case ast.Call(ast.Name() | ast.Attribute() as name, args, fields) if all(f.arg for f in fields):
            return Call(ast.unparse(name), tuple(map(_literal, args)), {f.arg: _literal(f.value) for f in fields})
    raise ValueError('not a literal')
