"""Families of models: one file each, which nothing else lists.

A file has ARCHITECTURE and MODEL_TYPE, as config.json calls them; TABLE, {path of our parameter: tables.Tensor}, or a
function of the model that returns it; read(hf) -> model, of the dict of a config.json; write(model) -> hf, the keys
that read needs. A family can hold a model where read(write(model)) is that model. It may have DEFAULTS, keys that
transformers leaves out of config.json where they are so; FIXED, keys that change what is computed and that are read at
no other value; IGNORED, a regex of tensors that hold no parameter; COPIES, {name: that of the tensor it repeats, or
None where it is all 0} of those that may be there too; LEFT_OUT, which returns for hf a regex of those that hold some
which we do not read, and words for them; and GGUF, the dialects.Dialect of its GGUF files.
"""
import functools
import importlib
import pathlib
import re
from dataclasses import fields, replace

from lm import config
from lm.models import Layer
from lm.models.model import TokenModel
from lm.nn import Execution, Experts


@functools.cache
def known():
    """Returns {name: module} of the files here."""
    files = sorted(path.stem for path in pathlib.Path(__file__).parent.glob('*.py') if not path.stem.startswith('_'))
    return {name: importlib.import_module(f'{__name__}.{name}') for name in files}


def of(hf, path):
    """Returns the family of a config.json; raises config.Error with the nearest names for one that is not known."""
    names = {**{family.MODEL_TYPE: family for family in known().values()},
             **{family.ARCHITECTURE: family for family in known().values()}}
    asked = [*(hf.get('architectures') or ()), hf.get('model_type')]
    for name in asked:
        if name in names:
            return names[name]
    wanted = next(filter(None, asked), 'no architecture')
    near = config.close(wanted, list(names)) or list(known())
    raise config.Error(f'{path} is {wanted}, which lm does not convert; the nearest: {", ".join(near)}.')


def model_of(hf, path):
    """Returns the model of a config.json, what it leaves out being as its family has it by default."""
    family = of(hf, path)
    fixed = getattr(family, 'FIXED', {})
    if other := [key for key, value in fixed.items() if (hf.get(key, value) or False) != value]:  # null is no
        raise config.Error(f'config.json has {", ".join(f"{key}={hf[key]}" for key in other)}, which lm lacks for '
                           f'{family.MODEL_TYPE}; it reads {", ".join(f"{key}={fixed[key]}" for key in other)}.')
    return family.read(type(hf)(getattr(family, 'DEFAULTS', {}) | hf))


def fitting(model):
    """Returns (family, hf) of the first family that can hold a model; raises config.Error that says what hinders.

    How a model is computed, its dropout, and what balances experts in training are no part of a checkpoint.
    """
    wanted, hindered = canonical(model), {}
    for name, family in known().items():
        try:
            hf = family.write(model)
            other = canonical(family.read(hf))
        except (config.Error, AttributeError, TypeError, KeyError, ValueError):  # a model of quite another kind
            continue
        if other == wanted:
            return family, hf
        if type(other) is type(wanted):
            hindered[name] = config.diff(wanted, other)
    if not hindered:
        raise config.Error(f'no family describes such a {type(model).__name__}; there are {", ".join(known())}.')
    name = min(hindered, key=lambda other: len(hindered[other]))
    faults = [re.sub(r'pattern\.\d+', 'pattern.*', f'model.{key}={here} ({there} there)')
              for key, (here, there) in hindered[name].items()]  # most often those of every layer
    faults = ', '.join([*dict.fromkeys(faults)][:5])
    raise config.Error(f'no family holds this model; the nearest, {name}, differs in {faults}.')


def canonical(model):
    """Returns a model with all sizes spelled out, without dropout, and all its layers in the pattern."""
    if not isinstance(model, TokenModel):
        return model
    if not hasattr(model, 'pattern'):
        halves = {side: _spelled_half(getattr(model, side), model.width) for side in ('encoder', 'decoder')
                  if hasattr(model, side)}
        return replace(model, execution=Execution(), embedding=replace(model.embedding, dropout=0.0), **halves)
    layers = tuple(_spelled(model.layers[i % len(model.layers)], model.width) for i in range(model.depth))
    plain = next(field.default_factory() for field in fields(model) if field.name == 'layer')
    return replace(model, pattern=layers, layer=plain, execution=Execution(),
                   embedding=replace(model.embedding, dropout=0.0))


def _spelled_half(half, width):
    return replace(half, layer=Layer(), pattern=tuple(_spelled(half.stack.layer(number), width)
                                                      for number in range(half.depth)))


def _spelled(layer, width):
    attention, cross = (own and replace(own, kv_heads=own.num_kv_heads, head_dim=own.head_size(width),
                                        scale=own.scale or own.head_size(width) ** -0.5)
                        for own in (layer.attention, layer.cross))
    mlp = replace(layer.mlp, balance=0.0, z_loss=0.0, bias_rate=float(layer.mlp.bias_rate > 0), capacity_factor=0.0) \
        if isinstance(layer.mlp, Experts) else replace(layer.mlp, ff=layer.mlp.hidden(width))
    return replace(layer, attention=attention, cross=cross, mlp=mlp, dropout=0.0)
