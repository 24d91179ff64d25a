"""Packings: how tokens are cut into rows of a fixed length. Each is a module of this folder, which is their only list.

A packing module is named by `Corpus.packing` and has one function,

    cut(tokens, offsets, context, ended, directory=None) -> Rows

where document i is tokens[offsets[i]:offsets[i + 1]] and `directory` may keep what takes long to compute. `ended`:
whether each document ends in an end token. A packing predicts the first token of a document from the end token of the
one before, and that of the first document from the last of all, tokens[-1]: what stands before a prompt, Corpus.prefix.
"""
import abc
import importlib
import pkgutil

NAMES = tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))


class Rows(abc.ABC):
    """The rows that the tokens of one source are cut into: each pairs `context` inputs with the tokens behind them."""

    version = 1  # counts from 1 what changed the rows of the same text, so that no run goes on with other ones
    context: int

    @property
    @abc.abstractmethod
    def rows(self):
        """How many rows there are."""

    @property
    @abc.abstractmethod
    def predictions(self):
        """How many tokens all rows predict together; any other token of the text is predicted by none."""

    @abc.abstractmethod
    def gather(self, index):
        """Returns rows `index` [B]: a dict of arrays [B T], with 'inputs' and 'targets' int32."""

    @abc.abstractmethod
    def spans(self, row):
        """Returns [(start, stop)] of the stretches of tokens in a row, without end tokens ahead of its documents."""

    def whole(self):
        """Returns the Rows for a pass over the text, in which as many tokens as possible are predicted, once each."""
        return self


def named(name):
    """Returns the packing module of that name."""
    return importlib.import_module(f'{__name__}.{name}')
