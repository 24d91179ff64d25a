"""Checkpoints in the formats of others: a config.json, and tensors by their Hugging Face names, one at a time."""
import abc
import contextlib
import json
import math
import os
from pathlib import Path

import ml_dtypes
import numpy as np

from lm import config
from lm.config import files
from lm.convert import quantised, sentences

DTYPES = {'F64': np.float64, 'F32': np.float32, 'F16': np.float16, 'BF16': ml_dtypes.bfloat16}
HEADER = {str: ({'dtype': str, 'shape': [int], 'data_offsets': [int]}, {str: str})}  # the second: __metadata__
PICKLES = ('.bin', '.pt', '.pth', '.ckpt', '.pkl')


@contextlib.contextmanager
def understood(path):
    """Turns what is raised of values of another kind than a checkpoint has into a config.Error that names it."""
    try:
        yield
    except config.Error:
        raise
    except (ArithmeticError, AttributeError, LookupError, MemoryError, RecursionError, TypeError, ValueError) as error:
        raise config.Error(f'{path} is damaged, or of a kind that lm does not know: {config.first_line(error)}; fetch '
                           'it again.') from error


class Settings(dict):
    """The object of a config.json, where what is asked for must be there."""

    def __or__(self, other):
        return type(self)(super().__or__(other))

    def __missing__(self, key):
        raise config.Error(f'config.json has no {key}; restore the file that came with the weights.')


class Checkpoint(abc.ABC):
    """Weights and their config: `path`, `config` (Settings), `shapes` {name: shape} of all tensors."""

    @abc.abstractmethod
    def tensor(self, name):
        """Returns a tensor as an array, perhaps one that is mapped from its file, of any floating dtype."""


class Directory(Checkpoint):
    """A Hugging Face directory: config.json and safetensors, in one file or several with an index.

    Weights that are quantised go by the names and shapes that they have where they are not.
    """

    def __init__(self, path):
        self.path = Path(path)
        hf = files.read_json(self.path / 'config.json', {'architectures?': [str]}, 'give the directory of a model.')
        self.config = Settings(hf | {sentences.KEY: sentences.modes(self.path)})
        self.entries = self._entries()
        self.maps = {file: np.memmap(file, np.uint8, 'r') for file, _ in self.entries.values()}
        self.shapes = {name: tuple(entry['shape']) for name, (_, entry) in self.entries.items()}
        self.quantised, self.last = quantised.tensors(hf, self.shapes), None
        parts = {part for tensor in self.quantised.values() for part in tensor.parts}
        self.shapes = {name: shape for name, shape in self.shapes.items() if name not in parts} | {
            name: tensor.shape for name, tensor in self.quantised.items()}

    def _entries(self):
        """Returns {name: (file, its entry in the header)} of the file model.safetensors, of those that an index names,
        or of all that there are.
        """
        index, single = self.path / 'model.safetensors.index.json', self.path / 'model.safetensors'
        if single.exists() or not index.exists():
            return self._merged([single] if single.exists() else sorted(self.path.glob('*.safetensors')))
        where = files.read_json(index, {'weight_map': {str: str}}, 'fetch it again.')['weight_map']
        headers = {file: header(self.path / file) for file in sorted(set(where.values()))}
        for name, file in where.items():
            if name not in headers[file]:
                raise config.Error(f'{self.path / file} has no {name}, which {index.name} says is there; fetch both '
                                   'again.')
        return {name: (self.path / file, headers[file][name]) for name, file in where.items()}

    def _merged(self, several):
        """Returns the entries of files without an index, which share no name."""
        entries = {}
        for file in several:
            for name, entry in header(file).items():
                if name in entries:
                    raise config.Error(f'{name} is in {file.name} and in {entries[name][0].name} of {self.path}; leave '
                                       'there only the one to convert.')
                entries[name] = file, entry
        if several:
            return entries
        pickles = sorted(path.name for path in self.path.iterdir() if path.suffix in PICKLES)
        if pickles:
            raise config.Error(f'{self.path / pickles[0]} is a pickle, which executes code when it is read; write it '
                               'as safetensors, with save_pretrained of transformers where you trust it.')
        raise config.Error(f'{self.path} holds no *.safetensors; give the directory of a model.')

    def tensor(self, name):
        if name not in self.quantised:
            return self._stored(name, DTYPES)
        if not self.last or self.last[0] != name:  # parts of one are asked for one after the other
            self.last = None
            _, parts, read = self.quantised[name]
            self.last = name, read(*(self._stored(part, quantised.DTYPES) for part in parts))
        return self.last[1]

    def _stored(self, name, dtypes):
        file, entry = self.entries[name]
        if entry['dtype'] not in dtypes:
            raise config.Error(f'{name} in {file} is {entry["dtype"]}; those that are read: {", ".join(dtypes)}.')
        first, last = entry['data_offsets']
        return self.maps[file][first:last].view(dtypes[entry['dtype']]).reshape(entry['shape'])


def header(file):
    """Returns {name: {'dtype', 'shape', 'data_offsets'}} of a safetensors file, with offsets into the whole file.

    Raises config.Error where it is missing, damaged or shorter than its header says.
    """
    try:
        size = os.path.getsize(file)
        with open(file, 'rb') as stream:
            length = int.from_bytes(stream.read(8), 'little')
            if size < 8 + length:
                raise config.Error(f'{file} is truncated: {size} bytes, of which its header alone needs {8 + length}; '
                                   'fetch it again.')
            text = stream.read(length)
            entries = files.parse_json(text, HEADER)
            json.loads(text, object_pairs_hook=_unique)
    except config.Error:
        raise
    except OSError as error:
        raise config.Error(f'cannot read {file}: {error.strerror}; fetch it again.') from error
    except ValueError as error:
        raise config.Error(f'{file} is no safetensors file ({error}); fetch it again.') from error
    entries.pop('__metadata__', None)
    for name, entry in entries.items():
        span, dtype = entry.get('data_offsets', ()), DTYPES.get(entry.get('dtype'), np.uint8)
        if len(span) != 2 or (dtype != np.uint8 and span[1] - span[0] != _bytes(entry['shape'], dtype)):
            raise config.Error(f'{file} is damaged: {name} is {entry.get("shape")} in bytes {span}; fetch it again.')
    entries = {name: {**entry, 'data_offsets': [8 + length + offset for offset in entry['data_offsets']]}
               for name, entry in entries.items()}
    end = 8 + length
    for name, entry in sorted(entries.items(), key=lambda item: item[1]['data_offsets']):
        first, last = entry['data_offsets']
        if first != end or last < first:
            raise config.Error(f'{file} is damaged: {name} begins at byte {first} where what is before it ends at '
                               f'{end}; fetch it again.')
        end = last
    if size != end:
        raise config.Error(f'{file} is {"truncated" if size < end else "longer than it should be"}: {size} bytes of '
                           f'{end}; fetch it again.')
    return entries


def _unique(pairs):
    """Returns the dict of an object in JSON; raises ValueError for two of one name, of which json keeps the last."""
    names = {}
    for name, value in pairs:
        if name in names:
            raise ValueError(f'it has {name!r} twice')
        names[name] = value
    return names


def _bytes(shape, dtype=np.float32):
    return math.prod(shape) * np.dtype(dtype).itemsize


class Writer:
    """A safetensors file of float32 tensors of {name: shape}, each written on its own, in any order."""

    def __init__(self, path, shapes):
        offset, entries = 0, {'__metadata__': {'format': 'pt'}}
        for name, shape in shapes.items():
            size = _bytes(shape)
            entries[name] = {'dtype': 'F32', 'shape': list(shape), 'data_offsets': [offset, offset + size]}
            offset += size
        text = json.dumps(entries).encode()
        text += b' ' * (-len(text) % 8)
        self.entries, self.file = entries, open(path, 'wb')
        self.file.write(len(text).to_bytes(8, 'little') + text)
        self.start = self.file.tell()
        self.file.truncate(self.start + offset)

    def write(self, name, array):
        self.file.seek(self.start + self.entries[name]['data_offsets'][0])
        self.file.write(np.ascontiguousarray(array, np.float32).data)

    def close(self):
        self.file.close()
