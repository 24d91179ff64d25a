"""Starts from the weights of others: a Hugging Face directory or a GGUF file, read onto the mesh."""
from dataclasses import dataclass
from pathlib import Path

import jax

from lm import config, trees
from lm.convert import checkpoints, dialects, families, tables
from lm.parallel import sharding
from lm.train.start import Start


def opened(path):
    """Returns the Checkpoint at a path: a Hugging Face directory or a GGUF file."""
    if Path(path).is_dir():
        return checkpoints.Directory(path)
    if Path(path).is_file():
        return dialects.File(path)
    raise config.Error(f'there is no {path}; give the directory of a Hugging Face model, or a GGUF file.')


def model(path):
    """Returns the model whose weights a Hugging Face directory or a GGUF file holds; reads no weights."""
    return model_of(opened(path))


def model_of(checkpoint):
    """Returns the model whose weights a Checkpoint holds; raises config.Error where its config.json describes none."""
    family = families.of(checkpoint.config, checkpoint.path)
    try:
        return family.read(checkpoint.config)
    except config.Error:
        raise
    except (TypeError, ValueError, AttributeError, LookupError, ArithmeticError) as error:  # values of another type
        raise config.Error(f'the config of {checkpoint.path} describes no {family.MODEL_TYPE} '
                           f'({config.first_line(error)}); restore the file that came with the weights.') from error


def bound(checkpoint, model):
    """Returns (Binding, tensor(name) -> array) of a checkpoint and a model that is its own."""
    family = families.of(checkpoint.config, checkpoint.path)
    binding = tables.Binding(model, family.TABLE)
    return binding, binding.check(checkpoint, getattr(family, 'IGNORED', ''))


@dataclass(frozen=True)
class _Weights(Start):
    path: str

    def params(self, model, key, mesh=None):
        binding, tensor = bound(self._open(), model)
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
