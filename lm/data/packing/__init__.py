"""Packings: how tokens are cut into rows of a fixed length. Each is a module of this folder, which is their only list.

A row predicts `context` tokens: it pairs context inputs with the token that follows each of them. A packing module is
named by `Corpus.packing` and has two functions,

    prefix(encoder) -> the ids that stand before the first token of a document, hence before a prompt
    cut(tokens, offsets, context, directory=None) -> rows

where document i is tokens[offsets[i]:offsets[i + 1]] and `directory` may keep what takes long to compute. It returns

    rows.rows           how many rows there are
    rows.gather(index)  rows `index` [B]: a dict of arrays [B T], with 'inputs' and 'targets' int32
    rows.spans(row)     [(start, stop)] of the stretches of tokens that one row is cut from
"""
import importlib
import pkgutil

NAMES = tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))


def named(name):
    """Returns the packing module of that name."""
    return importlib.import_module(f'{__name__}.{name}')
