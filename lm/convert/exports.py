"""A run as a Hugging Face directory: config.json, safetensors and tokenizer files that transformers loads."""
import json
import shutil
from pathlib import Path

import jax
import numpy as np

from lm import config, trees
from lm.convert import checkpoints, families, tables, tokenizers
from lm.convert.imports import check_empty
from lm.parallel import sharding
from lm.train import checkpoint, runs
from lm.train import step as steps

SHARD = 5 * 2 ** 30  # bytes of a file


def directory_of(run, directory, step=0, trust=False):
    """Writes the Hugging Face directory of a run at a step (0: the newest) and returns (family, step).

    Parameters are read one after the other. Raises config.Error where no family holds the model.
    """
    directory, settings = Path(directory), runs.read(run, runs.trusted(run, trust))
    family, hf = families.fitting(settings.model)
    check_empty(directory)
    mesh = sharding.make_mesh({'data': 1}, jax.local_devices(backend='cpu')[:1])
    leaf, reached = saved(settings, run, step, mesh)
    encoder = settings.data.tokenizer.fit(None, Path(run) / 'tokenizer')
    write(directory, tables.Binding(settings.model, family.TABLE), leaf)
    write_config(directory, family, hf, context=settings.data.context, encoder=encoder)
    keep_tokenizer(run, directory, encoder)
    return family, reached


def write_config(directory, family, hf, context, encoder=None):
    """Writes the config.json of a family's keys; context: how long a text may be where the model does not say."""
    hf = {'architectures': [family.ARCHITECTURE], 'model_type': family.MODEL_TYPE, 'dtype': 'float32',
          'max_position_embeddings': context, 'pad_token_id': None, **hf}  # Phi-3's own is past a small vocabulary
    if encoder:
        hf |= {'bos_token_id': encoder.bos, 'eos_token_id': encoder.eos}
    (directory / 'config.json').write_text(json.dumps(hf, indent=2) + '\n')


def saved(settings, run, step, mesh):
    """Returns (leaf(name) -> numpy array, step) of a run's parameters, one in memory at a time, as runs.saved has them.

    Where the optimizer keeps an average all are in memory.
    """
    wanted, directory = steps.placed(settings, mesh), Path(run) / 'checkpoints'
    if settings.optimizer.averaged(wanted.optimizer, wanted.params) is not wanted.params:
        params, reached = runs.saved(settings, run, step, mesh)
        return lambda name: np.asarray(trees.flatten(params)[name]), reached
    known = checkpoint.steps(directory)
    if not known:
        raise config.Error(f'{run} holds no checkpoint yet; wait until the run has saved one.')
    reached = step or known[-1]

    def leaf(name):
        part = trees.select(wanted.params, jax.tree.map(lambda other: other == name, trees.names(wanted.params)))
        state, _ = checkpoint.restore(directory, {'params': part}, reached)
        return np.asarray(jax.tree.leaves(state)[0])
    return leaf, reached


def write(directory, binding, leaf, shard=SHARD):
    """Writes the safetensors of a Binding's tensors, one file or several with an index; leaf(path) -> our array."""
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
    for file in files.values():
        file.close()
    if len(parts) > 1:
        total = sum(4 * int(np.prod(shape)) for shape in binding.shapes.values())
        (directory / 'model.safetensors.index.json').write_text(
            json.dumps({'metadata': {'total_size': total}, 'weight_map': where}, indent=2) + '\n')


def theirs(binding, leaf):
    """Yields (name, float32 array) of all their tensors; each of our parameters is read once."""
    groups = {}  # of parameters that share tensors, as fused ones do
    for path, parameter in binding.parameters.items():
        groups.setdefault(parameter.tensor.name, []).append((path, parameter))
    for members in groups.values():
        arrays = [(parameter, leaf(path)) for path, parameter in members]
        for counts, name in members[0][1].names():
            array = np.zeros(binding.shapes[name], np.float32)  # a tensor may have more rows than we
            for parameter, values in arrays:
                place = parameter.view(array)
                index = tuple(counts.get(letter, slice(None)) for letter in parameter.letters)
                place[...] = values[index][tuple(map(slice, place.shape))] - np.float32(parameter.tensor.plus)
            yield name, array


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
