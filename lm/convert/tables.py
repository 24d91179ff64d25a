"""Name tables: which tensor of a checkpoint each of our parameters is, and what both directions follow from."""
import itertools
import re
import types
from typing import NamedTuple

import jax
import numpy as np

from lm import config, trees
from lm.convert import layouts

ROWS = 1024  # of tensors that are compared, at a time


class Tensor(NamedTuple):
    """A tensor of theirs: its name, the layout of its axes (layouts), and what is added to its values to give ours.

    Letters in braces, of axes that are no axes of it, count: 'model.layers.{L}.mlp.experts.{E}.w1.weight'. first: the
    first layer that has one; what those before it have here is not used, and 0. pairs: the last so many entries of our
    last axis are dimensions that turn, of which pairs lie side by side there, and in halves here, as Rope turns them.
    """

    name: str
    layout: str = 'B'
    plus: float = 0.0
    first: int = 0
    pairs: int = 0


class Parameter(NamedTuple):
    """A parameter of ours [axes named by `letters`] beside its Tensor; `counted` are the axes that its name counts.

    layers: the numbers of those that its axis L stacks, if it has one.
    """

    tensor: Tensor
    letters: str
    shape: tuple
    sizes: dict
    layers: tuple = ()

    @property
    def counted(self):
        return [letter for letter in self.letters if f'{{{letter}}}' in self.tensor.name]

    @property
    def rest(self):
        return ''.join(letter for letter in self.letters if letter not in self.counted)

    def names(self):
        """Yields ({letter: number}, name) of each of their tensors."""
        for numbers in itertools.product(*(range(self.sizes[letter]) for letter in self.counted)):
            counts = dict(zip(self.counted, numbers, strict=True))
            if (name := self._name(counts)) is not None:
                yield counts, name

    def _name(self, counts):
        """Returns the name of one of their tensors, None where its layer has none."""
        layer = self.layers[counts['L']] if 'L' in counts else self.tensor.first
        return None if layer < self.tensor.first else self.tensor.name.format(**{**counts, 'L': layer})

    @property
    def order(self):
        """The places in theirs of the entries of our last axis, an index of it."""
        size, pairs = self.shape[-1], self.tensor.pairs
        turning = np.arange(size - pairs, size)
        return np.concatenate([np.arange(size - pairs), turning[::2], turning[1::2]]) if pairs else slice(None)

    def view(self, array):
        """Returns a view of one of their tensors with the axes `rest`."""
        return layouts.view(array, self.tensor.layout, self.rest, self.sizes)

    def read(self, tensor, index=()):
        """Returns values [of index] in float32, by tensor(name) -> array; index: a slice for each axis, () for all.

        What the vocabulary is padded with is 0.
        """
        index = tuple(index) or (slice(None),) * len(self.shape)
        ranges = {letter: range(*part.indices(size))
                  for letter, part, size in zip(self.letters, index, self.shape, strict=True)}
        values = np.zeros([len(ranges[letter]) for letter in self.letters], np.float32)
        inner = tuple(slice(ranges[letter].start, ranges[letter].stop) for letter in self.rest)
        if self.tensor.pairs:
            inner = (*inner[:-1], self.order[inner[-1]])
        for numbers in itertools.product(*(ranges[letter] for letter in self.counted)):
            counts = dict(zip(self.counted, numbers, strict=True))
            if (name := self._name(counts)) is None:
                continue
            part = self.view(tensor(name))[inner]
            place = tuple(counts[letter] - ranges[letter].start if letter in counts else slice(0, size)
                          for letter, size in self._places(part))
            values[place] = part
            if self.tensor.plus:
                values[place] += np.float32(self.tensor.plus)
        return values

    def _places(self, part):
        sizes = dict(zip(self.rest, part.shape, strict=True))
        return [(letter, sizes.get(letter)) for letter in self.letters]


class Binding:
    """A table {path of our parameter: Tensor} bound to a model: what a checkpoint of it holds.

    table: or a function of the model that returns it. parameters: {path: Parameter}. shapes: {their name: shape}. A
    table may name parameters that the model lacks; copies: {their name: that of what it repeats} has its output layer
    then. What it says of 'blocks' it says of all stacks of layers, but where it names those too.
    """

    def __init__(self, model, table):
        leaves = trees.flatten(jax.eval_shape(model.init, jax.random.key(0)))
        axes = trees.flatten(model.axes(), is_leaf=lambda node: isinstance(node, tuple))
        letters = {path: ''.join(layouts.LETTERS[name] for name in names) for path, names in axes.items()}
        everywhere = {letter: size for path, leaf in leaves.items()
                      for letter, size in zip(letters[path], leaf.shape, strict=True)} | {'V': model.vocab}
        table, stacks = table(model) if callable(table) else table, stacks_of(model)
        self.parameters, self.shapes = {}, {}
        for path, leaf in leaves.items():
            tensor = table.get(path) or table.get(re.sub(r'(^|/)blocks_\d+/', r'\1blocks/', path))
            if tensor is None:
                raise config.Error(f'{path} has no name in this family; give the model what its checkpoints have.')
            own = dict(zip(letters[path], leaf.shape, strict=True)) | {'V': model.vocab}
            layers = next((numbers for name, numbers in stacks.items() if path.startswith(f'{name}/')), ())
            parameter = Parameter(tensor, letters[path], leaf.shape, everywhere | own, tuple(layers))
            self.parameters[path] = parameter
            shape = layouts.shape(parameter.tensor.layout, parameter.sizes)
            self.shapes |= dict.fromkeys((name for _, name in parameter.names()), shape)
        self.copies = {table['output'].name: table['tokens'].name} if 'output' in table.keys() - leaves.keys() else {}

    def check(self, checkpoint, ignored='', copies=types.MappingProxyType({})):
        """Returns tensor(name) -> array of a checkpoint that has just what the model needs, beside names by `ignored`.

        Names may lack their first word, as those of a base model do. copies: {name: that of a tensor it repeats, or
        None where it is all 0} of more that it may have. Raises config.Error that lists all tensors that are missing,
        extra, or of another shape, and where one is no copy.
        """
        def spelled(name):
            _, _, short = name.partition('.')
            return name if name in checkpoint.shapes or short not in checkpoint.shapes else short
        stored = {name: spelled(name) for name in self.shapes}
        copies = {copy: name for copy, name in {**self.copies, **copies}.items() if copy not in stored}
        known = {*stored.values(), *map(spelled, copies)}
        missing = [name for name, other in stored.items() if other not in checkpoint.shapes]
        extra = [name for name in checkpoint.shapes if name not in known and not re.search(ignored or '$^', name)]
        wrong = [name for name, other in stored.items() if name not in missing
                 and checkpoint.shapes[other] != self.shapes[name]]
        faults = [f'{title} {", ".join(collapsed(names))}'
                  for title, names in (('missing', missing), ('extra', extra)) if names]
        faults += [f'{name} is {list(checkpoint.shapes[stored[name]])} and by the sizes of the model '
                   f'{list(self.shapes[name])}' for name in wrong]
        if faults:
            raise config.Error(f'{checkpoint.path} does not hold this model: {"; ".join(faults)}; compare its sizes '
                               'with those of config.json.')
        for copy, name in copies.items():
            if spelled(copy) in checkpoint.shapes and not _repeats(checkpoint, spelled(copy), name and stored[name]):
                fact = f'differs from {name}, and lm has one tensor for both' if name else 'is not 0, and lm has none'
                remedy = ('set tie_word_embeddings=false in its config.json if they were trained apart'
                          if copy in self.copies else 'convert one where that is not so')
                raise config.Error(f'{spelled(copy)} in {checkpoint.path} {fact}; {remedy}.')
        return lambda name: checkpoint.tensor(stored[name])


def _repeats(checkpoint, copy, name):
    """Returns whether a tensor `copy` is equal to the one of a name, or 0 for None; ROWS at a time, for the memory.
    """
    own = checkpoint.tensor(copy)
    other = checkpoint.tensor(name) if name else np.broadcast_to(np.float32(0), own.shape)
    return own.shape == other.shape and all(
        np.array_equal(own[start:start + ROWS].astype(np.float32), other[start:start + ROWS].astype(np.float32))
        for start in range(0, len(own), ROWS))


def stacks_of(model):
    """Returns {path: numbers of the layers} of the stacks of a model, or of both its halves."""
    halves = {'': model} if hasattr(model, 'stack') else {
        f'{side}/': getattr(model, side) for side in ('encoder', 'decoder')}
    return {f'{prefix}{name}': numbers for prefix, half in halves.items()
            for name, numbers in half.stack.stacks(model.width).items()}


def collapsed(names):
    """Returns names in which numbers that alone differ are joined: layers.0.w, layers.1.w -> layers.{0-1}.w."""
    groups = {}
    for name in names:
        number = re.search(r'(?<=\.)\d+(?=\.)', name)
        key = (name[:number.start()], name[number.end():]) if number else (name, '')
        groups.setdefault(key, []).extend([int(number[0])] if number else [])
    return [f'{before}{_spans(numbers)}{after}' for (before, after), numbers in groups.items()]


def _spans(numbers):
    if len(numbers) < 2:
        return ''.join(map(str, numbers))
    runs = [list(run) for _, run in itertools.groupby(enumerate(sorted(numbers)), lambda pair: pair[1] - pair[0])]
    return '{' + ','.join(f'{run[0][1]}-{run[-1][1]}' if len(run) > 1 else str(run[0][1]) for run in runs) + '}'
