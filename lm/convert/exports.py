"""A run as a Hugging Face directory: config.json, safetensors and tokenizer files that transformers loads."""
import json
import shutil
from pathlib import Path

import jax
import numpy as np

from lm import config, trees
from lm.convert import checkpoints, families, sentences, tables, tokenizers
from lm.convert.imports import Elsewhere, written
from lm.parallel import sharding
from lm.train import checkpoint, checkpoint_stream, runs
from lm.train import step as steps

SHARD = 5 * 2 ** 30  # bytes of a file


def directory_of(run, directory, step=0, trust=False):
    """Writes the Hugging Face directory of a run at a step (0: the newest) and returns (its architecture, step).

    Parameters are read one after the other, see saved. Raises config.Error where no family holds the model.
    """
    directory, settings = Path(directory), runs.read(run, runs.trusted(run, trust))
    family, hf = families.fitting(settings.model)
    leaf, reached = saved(settings, run, step)
    encoder = settings.data.tokenizer.fit(None, Path(run) / 'tokenizer')
    text, context = settings.data.train, settings.data.context
    if isinstance(text, Elsewhere):
        context = text.longest or context
    with written(directory):
        write(directory, tables.Binding(settings.model, family.TABLE), leaf)
        hf = write_config(directory, family, hf, context, encoder)
        keep_tokenizer(run, directory, encoder)
    return hf['architectures'][0], reached


def write_config(directory, family, hf, context, encoder=None):
    """Writes the config.json of a family's keys, and modules of sentence-transformers where they say any; returns it.

    context: how long a text may be where the model does not say.
    """
    hf = {'architectures': [family.ARCHITECTURE], 'model_type': family.MODEL_TYPE, 'dtype': 'float32',
          'max_position_embeddings': context, 'pad_token_id': None, **hf}  # Phi-3's own is past a small vocabulary
    if encoder:
        hf |= {'bos_token_id': encoder.bos, 'eos_token_id': encoder.eos}
    if modes := hf.pop(sentences.KEY, None):
        sentences.write(directory, modes, hf['hidden_size'])
    (directory / 'config.json').write_text(json.dumps(hf, indent=2) + '\n')
    return hf


class Loaded:
    """A parameter in memory, as checkpoint_stream.Stored is one on disk."""

    def __init__(self, array):
        self.array = array

    def read(self, index):
        return np.asarray(self.array[index])

    def verify(self):
        """Returns: what is in memory was verified when it was loaded."""


def saved(settings, run, step):
    """Returns (leaf(name) -> Stored or Loaded, step) of a run's parameters, as runs.saved has them.

    Where the optimizer keeps an average all are loaded; else they are read when they are written, layer by layer where
    they were saved so.
    """
    directory = Path(run) / 'checkpoints'
    mesh = sharding.make_mesh({'data': 1}, jax.local_devices(backend='cpu')[:1])
    wanted = steps.placed(settings, mesh)
    if settings.optimizer.averaged(wanted.optimizer, wanted.params) is not wanted.params:
        params, reached = runs.saved(settings, run, step, mesh)
        return lambda name: Loaded(trees.flatten(params)[name]), reached
    known = checkpoint.steps(directory)
    if not known or (step and step not in known):
        raise config.Error(f'{run} holds no checkpoint {step or "yet"}; the steps there are {known}.')
    reached = step or known[-1]
    return lambda name: checkpoint_stream.Stored(directory, reached, f'params/{name}'), reached


def write(directory, binding, leaf, shard=SHARD):
    """Writes the safetensors of a Binding's tensors, one file or several with an index; see theirs."""
    parts, size = [{}], 0
    for name, shape in binding.shapes.items():
        bytes = 4 * int(np.prod(shape))
        if parts[-1] and size + bytes > shard:
            parts.append({})
            size = 0
        parts[-1][name] = shape
        size += bytes
    names = ['model.safetensors'] if len(parts) == 1 else [
        f'model-{number:05}-of-{len(parts):05}.safetensors' for number in range(1, len(parts) + 1)]
    where = {name: file for file, part in zip(names, parts, strict=True) for name in part}
    files = {file: checkpoints.Writer(directory / file, part) for file, part in zip(names, parts, strict=True)}
    for name, array in theirs(binding, leaf):
        files[where[name]].write(name, array)
        del array  # before the next is read
    for file in files.values():
        file.close()
    if len(parts) > 1:
        total = sum(4 * int(np.prod(shape)) for shape in binding.shapes.values())
        (directory / 'model.safetensors.index.json').write_text(
            json.dumps({'metadata': {'total_size': total}, 'weight_map': where}, indent=2) + '\n')


def theirs(binding, leaf):
    """Yields (name, float32 array) of all their tensors; leaf(path).read(index) -> values, each read once."""
    groups = {}  # of parameters that share tensors, as fused ones do
    for path, parameter in binding.parameters.items():
        groups.setdefault((parameter.tensor.name, parameter.layers), []).append((path, parameter))
    for members in groups.values():
        sources = [(parameter, leaf(path)) for path, parameter in members]
        for counts, name in members[0][1].names():
            yield name, _filled(binding.shapes[name], sources, counts)
        for _, source in sources:
            source.verify()


def _filled(shape, sources, counts):
    """Returns one of their tensors, of [(Parameter, Stored or Loaded)] at the numbers {letter: number} of its name."""
    array = np.zeros(shape, np.float32)  # a tensor may have more rows than we
    for parameter, source in sources:
        place = parameter.view(array)
        values = source.read(tuple(counts.get(letter, slice(None)) for letter in parameter.letters))
        place[..., parameter.order] = values[tuple(map(slice, place.shape))]
        if parameter.tensor.plus:
            place[...] -= np.float32(parameter.tensor.plus)
    return array


def keep_tokenizer(run, directory, encoder):
    """Copies a run's tokenizer where it has a form that transformers reads, and says so where it has none."""
    source = Path(run) / 'tokenizer'
    own = next((own for own in tokenizers.FORMS.values() if (source / own).exists()), None)
    if own is None:
        print(f'lm: the {type(encoder).__name__} of {run} has no Hugging Face form; {directory} has no tokenizer.')
        return
    name = next(name for name, other in tokenizers.FORMS.items() if other == own)
    shutil.copyfile(source / own, directory / name)
    for other in (tokenizers.TEMPLATE, tokenizers.ABOUT):
        if (source / other).exists():
            shutil.copyfile(source / other, directory / other)
    if own == name and not (source / tokenizers.ABOUT).exists():
        spelled = {number: token for token, number in encoder.vocabulary.items()}
        (directory / tokenizers.ABOUT).write_bytes(
            tokenizers.about(eos_token=spelled.get(encoder.eos), bos_token=spelled.get(encoder.bos)))
