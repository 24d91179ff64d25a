"""Remedies that work: the value that a message says to try is tried before anybody reads it."""
import re

from lm.config.annotations import Error
from lm.config.literals import Text

TRY = re.compile(r'; try ([\w.]+)=(\S+?)\.?$')
MOST, LONGEST = 8, 3  # keys that are tried for one name, and values that are proposed together


def tried(fault, keys, attempt):
    """Returns the Error to raise for the `fault` of overrides: its remedy has dotted keys of `keys`, and all it takes.

    A component knows its fields and not where it is, nor what others make of the value that it proposes: width=63 for
    heads=3 leaves a head_dim of 21, which Rope refuses. attempt(changes) applies {dotted key: text} beside the
    overrides. A remedy that does not work anywhere stays as it is, with the dotted key where only one has its name.
    """
    remedy = TRY.search(str(fault))
    if not remedy:
        return fault
    changes, ending = _working(fault, keys, attempt, {}), _ending(remedy[1], keys)
    if not changes and len(ending) == 1:
        changes = {ending[0]: remedy[2]}
    words = ' '.join(f'{key}={value}' for key, value in changes.items())
    return Error(f'{str(fault)[:remedy.start()]}; try {words}.') if words else fault


def _working(fault, keys, attempt, changes):
    """Returns `changes` and those that the remedy of a fault adds, where an attempt with all of them works, else {}."""
    remedy = TRY.search(str(fault))
    for key in _ending(remedy[1], keys) if remedy and len(changes) < LONGEST else ():
        more = {**changes, key: Text(remedy[2])}
        try:
            attempt(more)
            return more
        except Exception as another:  # the code of an experiment may raise anything
            if str(another) != str(fault) and (all_of_it := _working(another, keys, attempt, more)):
                return all_of_it
    return {}


def _ending(name, keys):
    """Returns the dotted keys that end in `name`, those nearest to the root first."""
    return sorted({key for key in keys if f'.{key}'.endswith(f'.{name}')}, key=lambda key: (key.count('.'), key))[:MOST]
