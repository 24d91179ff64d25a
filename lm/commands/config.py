"""`lm config`: an experiment with every value resolved, and where each came from."""
import pathlib
import sys

from lm.config.annotations import is_component
from lm.config.experiments import load
from lm.config.overrides import branches
from lm.config.overrides import diff as difference

JAX = False  # starts no device


def main(experiment: str, *overrides: str, diff: str = ''):
    """Shows an experiment with every value resolved and where it comes from.

    Args:
        experiment: the experiment file
        overrides: values to set, e.g. model.depth=12
        diff: another experiment file; show only the keys whose values differ
    """
    loaded = load(experiment, overrides)
    if diff:
        _show(('key', experiment, diff), _difference_rows(loaded.config, load(diff).config))
    else:
        _show(('key', 'value', 'from'), _rows(loaded))


def _rows(loaded):
    for key, value in branches(loaded.config):
        if key in loaded.provenance:
            yield key, shown(value), loaded.provenance[key]
        elif is_component(value):
            yield key, type(value).__name__, ''


def _difference_rows(a, b):
    for key, (left, right) in difference(a, b).items():
        yield key or type(a).__name__, shown(left), shown(right)


def shown(value):
    """Returns `value` as one would write it in an override."""
    plain = isinstance(value, (bool, pathlib.PurePath)) or (isinstance(value, str) and value.isprintable())
    return str(value) if plain else repr(value)


def _show(head, rows):
    """Prints a table: drawn on a terminal, columns of plain text into a pipe."""
    rows = list(rows)
    if sys.stdout.isatty():
        from rich import box, console, table
        drawn = table.Table(*head, box=box.SIMPLE_HEAD)
        for row in rows:
            drawn.add_row(*map(_escaped, row))
        console.Console().print(drawn)
        return
    widths = [max((len(row[i]) for row in rows), default=0) for i in range(len(head))]
    for row in rows:
        print('  '.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _escaped(cell):
    from rich import markup
    return markup.escape(cell)
