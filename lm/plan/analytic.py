"""What a step takes on each device by formula: memory, FLOPs, bytes through memory and between devices, in no time."""
import functools
import math
import types
from dataclasses import dataclass

import jax

from lm import train
from lm.nn import layers
from lm.parallel import reductions, sharding
from lm.plan import layouts

WIDTH = {'bfloat16': 2, 'float32': 4}


@dataclass(frozen=True)
class Subject:
    """An experiment as the formulas see it: its settings, and its state as tuples of (logical axes, shape, width)."""

    settings: object
    parameters: tuple
    optimizer: tuple


def subject(settings):
    """Returns the Subject of a train.Config; shapes only, nothing is computed."""
    axes, params = settings.model.axes(), settings.start.shapes(settings.model)
    optimizer = jax.eval_shape(train.parts(settings).init, params).optimizer
    known = {_keys(path): names for path, names in jax.tree_util.tree_leaves_with_path(
        axes, is_leaf=lambda node: isinstance(node, tuple))}
    return Subject(settings, _arrays(params, known), _arrays(optimizer, known))


def _keys(path):
    return tuple(entry.key for entry in path if isinstance(entry, jax.tree_util.DictKey))


def _arrays(tree, known):
    found = []
    for path, x in jax.tree_util.tree_leaves_with_path(tree):
        names = known.get(_keys(path), ())
        names = names if len(names) == len(x.shape) else (None,) * len(x.shape)
        found.append((names, x.shape, x.dtype.itemsize))
    return tuple(found)


def held(arrays, sizes, zero=False):
    """Returns the bytes that one device holds of arrays under a mesh of `sizes`."""
    return _held(arrays, tuple(sizes.items()), zero)


@functools.cache
def _held(arrays, sizes, zero):
    mesh = types.SimpleNamespace(shape=dict(sizes), manual_axes=())
    total = 0
    for names, shape, width in arrays:
        split = sharding.spec(names, shape, mesh, sharding.ZERO if zero else sharding.RULES)
        axes = [axis for entry in split if entry for axis in ((entry,) if isinstance(entry, str) else entry)]
        total += width * math.prod(shape) / math.prod(mesh.shape[axis] for axis in axes)
    return total


@dataclass(frozen=True)
class Sizes:
    """The numbers of one micro-batch on one device that all formulas are made of.

    tokens: in it. width: bytes of a value in products. hidden, heads, keys, inner: D, N H, K H and F (of all experts
    that a token uses) on this device. routed: rows [D] for experts that there is room for, a token. layers: on it.
    matrices: weights of one layer, gathered but not those of other tensor shards. vocab: rows of the output on this
    device at a time.
    """

    tokens: float
    length: float
    width: int
    hidden: int
    heads: float
    keys: float
    inner: float
    routed: float
    layers: float
    matrices: float
    table: float
    vocab: float


def sizes_of(layout, subject):
    """Returns the Sizes of a Subject under a Layout."""
    model, mesh = subject.settings.model, layout.sizes
    rows, length = layouts.rows(layout, subject.settings)
    tensor, width = mesh.get('tensor', 1), WIDTH[model.dtype]
    stage = mesh.get('stage', 1)
    inner, routed = model.ff or 4 * model.width, 0
    if model.experts:
        inner = model.experts.ff * (model.experts.top + model.experts.shared)
        owners = mesh.get('expert', 1)
        routed = model.experts.top * (1 if owners == 1 else model.experts.room or owners)
    whole = {axis: size for axis, size in mesh.items() if axis in ('tensor', 'expert', 'stage')}
    blocks = tuple(each for each in subject.parameters if 'layers' in each[0] and len(each[1]) > 2)
    table = model.padded * model.width / tensor
    return Sizes(rows * length, length, width, model.width, model.heads * model.size / tensor,
                 model.groups * model.size / min(tensor, model.groups), inner / tensor, routed,
                 model.depth / stage, held(blocks, whole) / 4 / (model.depth / stage), table,
                 model.padded / tensor / layout.loss_parts)


def memory(layout, subject, platform):
    """Returns {what: bytes} of one device at the fullest moment of a step, on 'tpu' or 'cuda'."""
    settings, mesh, s = subject.settings, layout.sizes, sizes_of(layout, subject)
    parameters = held(subject.parameters, mesh)
    optimizer = held(subject.optimizer, mesh, settings.zero)
    rows = settings.data.batch / math.prod(mesh.get(axis, 1) for axis in ('data', 'fsdp', 'expert'))
    gradients = parameters * (2 if layout.accumulate > 1 else 1)
    return {'parameters': parameters, 'optimizer': optimizer,
            'batch': 4 * rows * (2 * settings.data.context + 1),
            'gradients': gradients, 'saved': s.layers * _saved(layout.remat, settings.model, s) * s.tokens,
            'working': max(_layer_work(layout.remat, settings.model, s), _loss_work(layout, s, platform))}


def _saved(remat, model, s):
    """Returns the bytes for each token that one layer keeps for the backward pass."""
    if remat == 'offload':
        return 0
    if remat == 'full':
        return s.width * s.hidden
    gates = 2 if model.activation in ('swiglu', 'geglu') else 1
    products = s.width * (s.heads + 2 * s.keys + gates * s.inner + 2 * s.hidden)
    if remat == 'dots':
        return products + s.width * s.hidden
    return products + s.width * (2 * s.heads + (1 + gates) * s.inner) + 4 * 2 * s.hidden + 4 * model.heads


def _layer_work(remat, model, s):
    """Returns the bytes of one layer's backward pass: its weights, gathered, their gradients, and its activations.

    Where all is recomputed the MLP is, with its weights, in parts, beside queries, keys, values and what they gave, the
    inputs of the layer and of the MLP before and after its norm, and two gradients. Rows of experts are there as sent,
    as sorted, as given back, and the gradients of two of these.
    """
    gates = 2 if model.activation in ('swiglu', 'geglu') else 1
    if remat not in layers.FULL:
        each = (1 + 2 * gates) * s.inner + 3 * s.heads + 2 * s.keys + s.hidden
        return s.width * (s.matrices + each * s.tokens)
    beside = 2 * s.heads + 2 * s.keys + 5 * s.hidden
    if model.experts:
        each = s.routed * (5 * s.hidden + (1 + gates) * model.experts.ff) + model.experts.top * s.hidden + beside
        return s.width * (s.matrices + each * s.tokens)
    ff = model.ff or 4 * model.width
    parts = layers.parts(ff, model.width, round(ff / s.inner))
    later = (1 - 1 / parts) * (1 + gates) * s.hidden * s.inner
    return s.width * (s.matrices - later + ((1 + 2 * gates) * s.inner / parts + beside) * s.tokens)


def _loss_work(layout, s, platform):
    """Returns the bytes of the output layer: scores, their gradient, and the gathered part of the table.

    The scores of all classes at once are held in float32 beside their gradient on TPU, where a GPU's fused kernels make
    them twice in the width of products.
    """
    if layout.loss_parts == 1:
        return s.tokens * s.vocab * (s.width + (4 if platform == 'tpu' else s.width)) + 2 * s.width * s.table
    return s.tokens * (s.vocab * (4 + s.width) + 2 * 4 * s.hidden) + 2 * s.width * s.table / layout.loss_parts


def measure(layout, subject, seen):
    """Returns {'flops', 'memory_bytes', 'collectives'} as costs.measure does, by formula."""
    settings, s = subject.settings, sizes_of(layout, subject)
    model, times = settings.model, layout.accumulate
    again = {'none': 0, 'dots': 0.2, 'full': 1, 'offload': 1}[layout.remat]
    active = s.matrices
    if model.experts:
        active = s.hidden * (2 * s.heads + 2 * s.keys) + 3 * s.hidden * s.inner
    products = 2 * active * s.layers * s.tokens * (3 + again)
    output = 2 * s.tokens * s.table * (3 if layout.loss_parts == 1 else 4)
    attention = 2 * s.tokens * settings.data.context * seen * s.heads * s.layers * (9 + 2 * again)
    parameters = held(subject.parameters, layout.sizes)
    touched = s.layers * (_saved('none', model, s) * s.tokens * (3 + again) + s.width * s.matrices * (4 + again))
    touched += s.tokens * s.vocab * layout.loss_parts * 4 * 3 + s.width * s.table * 4
    state = 2 * (parameters + held(subject.optimizer, layout.sizes)) + 2 * parameters
    return {'flops': times * (products + output + attention), 'memory_bytes': times * touched + state,
            'collectives': {key: value for key, value in _sent(layout, subject, s, again).items() if value}}


def _sent(layout, subject, s, again):
    """Returns {(kind, axes): bytes sent by a device} of one step."""
    model, sizes, times = subject.settings.model, layout.sizes, layout.accumulate
    once = times > 1 and reductions.separable(sizes) and not subject.settings.noise_scale

    def share(axis):
        return (sizes.get(axis, 1) - 1) / sizes.get(axis, 1)
    weights = s.width * (s.layers * s.matrices + s.table * (1 if model.tied else 2))
    flow = s.width * s.tokens * s.hidden
    summed = held(subject.parameters, sizes) if once else times * weights / sizes.get('fsdp', 1)
    rounds = 2 * (2 + bool(again)) * s.layers
    keys = 2 * s.width * s.tokens * s.keys * (sizes.get('context', 1) - 1)
    routed = flow * model.experts.top * 2 * (2 + bool(again)) * s.layers if model.experts else 0
    away = 2 * times * s.layers * flow if layout.remat == 'offload' else 0
    return {('copy', 'host'): away,
            ('all-gather', 'fsdp'): times * 2 * weights * share('fsdp'),
            ('reduce-scatter', 'fsdp'): times * weights * share('fsdp'),
            ('all-reduce', 'data'): 2 * summed * share('data'),
            ('all-reduce', 'tensor'): times * rounds * 2 * flow * share('tensor'),
            ('all-gather', 'context'): times * s.layers * keys * (2 + bool(again)),
            ('ragged-all-to-all', 'expert'): times * routed * share('expert')}


def seen_share(settings):
    """Returns the share of all pairs of positions that attention looks at, on average over layers."""
    model, length = settings.model, settings.data.context
    windows = [min(model.windows[i % len(model.windows)] or length, length) for i in range(model.depth)]
    return sum(w * (length - w / 2) / length ** 2 for w in windows) / len(windows)
