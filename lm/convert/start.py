"""Starts from the weights of others: a Hugging Face directory or a GGUF file, read onto the mesh."""
import os
import re
from dataclasses import dataclass

import jax

from lm import config, trees
from lm.config import files
from lm.convert import checkpoints, dialects, families, tables
from lm.parallel import sharding
from lm.train.start import Start


def opened(path):
    """Returns the Checkpoint at a path: a Hugging Face directory or a GGUF file."""
    with checkpoints.understood(path):
        if os.path.isdir(path):
            return checkpoints.Directory(path)
        if os.path.isfile(path):
            return dialects.File(path)
    raise config.Error(f'there is no {path}; give the directory of a Hugging Face model, or a GGUF file.')


def model(path):
    """Returns the model whose weights a Hugging Face directory or a GGUF file holds; reads no weights."""
    return model_of(opened(path))


def model_of(checkpoint):
    """Returns the model whose weights a Checkpoint holds."""
    with checkpoints.understood(checkpoint.path):
        return families.model_of(checkpoint.config, checkpoint.path)


def bound(checkpoint, model):
    """Returns (Binding, tensor(name) -> array) of a checkpoint and a model that is its own."""
    family = families.of(checkpoint.config, checkpoint.path)
    with checkpoints.understood(checkpoint.path):
        binding = tables.Binding(model, family.TABLE)
        unread, words = family.LEFT_OUT(checkpoint.config) if hasattr(family, 'LEFT_OUT') else ('', '')
        ignored = '|'.join(filter(None, [getattr(family, 'IGNORED', ''), unread]))
        tensor = binding.check(checkpoint, ignored, getattr(family, 'COPIES', {}))
    names = [match[0] for match in map(re.compile(unread).match, checkpoint.shapes) if match and unread]
    if names:
        files.warn(f'{checkpoint.path} has {words}, which is left out: {len(names)} tensors, '
                   f'{", ".join(f"{name}*" for name in sorted(set(names)))}.')

    def understood(name):
        with checkpoints.understood(f'{name} in {checkpoint.path}'):
            return tensor(name)
    return binding, understood


def _warn(checkpoint, model):
    """Warns in one line where a model has the tensors of a checkpoint and computes something else with them."""
    changed = config.diff(*map(families.canonical, (model_of(checkpoint), model)))
    if changed:
        faults = ', '.join(f'model.{key}={here} ({there} there)' for key, (there, here) in list(changed.items())[:3])
        files.warn(f'the model is not that of {checkpoint.path}: {faults}; it starts from its weights all the same.')


@dataclass(frozen=True)
class _Weights(Start):
    path: str

    def params(self, model, key, mesh=None):
        checkpoint = self._open()
        binding, tensor = bound(checkpoint, model)
        _warn(checkpoint, model)
        shapes = self.shapes(model)
        places = None if mesh is None else trees.flatten(sharding.mirror(shapes, model.axes(), mesh))

        def read(path, shape):
            parameter = binding.parameters[path]
            if places is None:
                return parameter.read(tensor)
            return jax.make_array_from_callback(shape.shape, places[path], lambda index: parameter.read(tensor, index))
        return jax.tree.map(read, trees.names(shapes), shapes)


@dataclass(frozen=True)
class HuggingFace(_Weights):
    """The weights of a Hugging Face directory: config.json and safetensors. The model must be that of convert.model."""

    def _open(self):
        return checkpoints.Directory(self.path)


@dataclass(frozen=True)
class Gguf(_Weights):
    """The weights of a GGUF file, dequantised to float32. The model must be that of convert.model."""

    def _open(self):
        return dialects.File(self.path)
