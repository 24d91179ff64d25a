"""The parts that models are made of: weight, einsum and stack; norms, dropout, mlp, embedding and unembedding.

`weight` is the one place a parameter is declared. From the logical axis names given there, sharding, weight decay,
Muon's matrices and conversions are derived.
"""
import math
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from lm import config, trees
from lm.parallel import sharding

SMALL = 1024  # vocabularies up to this size have their embedding's gradient by a matrix product

@struct.dataclass
class Named(nn.meta.AxisMetadata):
    """A parameter with the logical name of each of its axes, as `init` makes it and before `unbox` strips the names."""

    value: Any
    names: tuple = struct.field(pytree_node=False)

    def unbox(self):
        return self.value

    def replace_boxed(self, val):
        return self.replace(value=val)

    def add_axis(self, index, params):
        return self.replace(names=self.names[:index] + (params[nn.PARTITION_NAME],) + self.names[index:])

    def remove_axis(self, index, params):
        return self.replace(names=self.names[:index] + self.names[index + 1:])


def normal(scale):
    """Returns an initializer drawing from a normal distribution with standard deviation `scale`."""
    return lambda key, shape: scale * jax.random.normal(key, shape, jnp.float32)


def fill(value):
    """Returns an initializer of a constant."""
    return lambda key, shape: jnp.full(shape, value, jnp.float32)


def weight(module, name, axes, init, dtype=jnp.float32):
    """Returns parameter `name` of a Linen module, float32 where it is kept and cast to `dtype` for use.

    `axes` maps each logical axis name to its size, in order, e.g. {'embed': D, 'heads': N, 'head_dim': H}.
    """
    shape = tuple(axes.values())
    value = module.param(name, lambda key: Named(init(key, shape), tuple(axes)))
    return _split_first(value, tuple(axes)).astype(dtype)


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _split_first(x, names):
    """Returns x, a parameter with these logical axis names, whose gradient lies in memory with the axis embed first.

    TPUs hold the last axis in tiles of 128, and of embed under fsdp a device may have 16: XLA left to itself was seen
    to stack the gradients of all layers in eight times their size.
    """
    return x


def _split_first_backward(names, _, g):
    from jax.experimental.layout import Layout, with_layout_constraint
    if sharding.platform() != 'tpu':
        return (g,)
    return (with_layout_constraint(g, Layout(tuple(sorted(range(g.ndim), key=lambda axis: names[axis] != 'embed')))),)


_split_first.defvjp(lambda x, names: (x, None), _split_first_backward)


def unbox(boxed):
    """Returns (params, axes): the arrays of a tree of Named, and their logical axis names."""
    def is_named(node):
        return isinstance(node, Named)
    return (jax.tree.map(lambda leaf: leaf.value, boxed, is_leaf=is_named),
            jax.tree.map(lambda leaf: leaf.names, boxed, is_leaf=is_named))


def einsum(spec, x, w, quantized='none'):
    """Returns einsum(spec, x, w) of activations x [... contracted] and a weight w, as one product of two matrices.

    The contracted letters end x and the leading letters of x begin the result, as in 'BTD,DNH->BTNH'. Flattening
    [B T] into one axis lets the backward pass contract over one axis, which XLA's CPU backend needs to be fast; other
    backends flatten by themselves. Where T is split over a mesh axis it stays an axis. See `product` for `quantized`.
    """
    inputs, out = spec.split('->')
    left, right = inputs.split(',')
    rows = len([letter for letter in left if letter in out])
    contracted = left[rows:]
    if right.startswith(contracted):
        columns = w.shape[len(contracted):]
        w = w.reshape(-1, math.prod(columns))
    else:
        columns = w.shape[:-len(contracted)]
        w = w.reshape(math.prod(columns), -1).T
    lead = x.shape[:rows]
    x = x.reshape(*(lead if _split_length() else (math.prod(lead),)), -1)
    return product(x, w, quantized).reshape(*lead, *columns)


def product(x, w, quantized):
    """Returns x [... D] times w [D F], with both rounded to 8 bits by rows and columns where `quantized` says so.

    'int8': the gradient by x too; 'fp8': both gradients too, of which the incoming one is float8_e5m2 for its range and
    all else float8_e4m3fn (Micikevicius et al. 2022, arXiv:2209.05433). Raises config.Error where qwix is absent.
    """
    dimensions = (((x.ndim - 1,), (0,)), ((), ()))
    if quantized == 'none':
        return jax.lax.dot_general(x, w, dimensions)
    try:
        from qwix._src.core.dot_general_qt import DotGeneralQtConfig, dot_general_qt
    except ImportError as error:
        raise config.Error(f"quantized={quantized} needs qwix; try pip install 'lm[quant]'.") from error
    kinds = {'int8': ('int8', 'int8', None), 'fp8': ('float8_e4m3fn', 'float8_e5m2', 'float8_e5m2')}[quantized]
    inputs, of_x, of_w = kinds
    return dot_general_qt(x, w, dimensions, DotGeneralQtConfig(
        lhs_qtype=inputs, rhs_qtype=inputs, dlhs_grad_qtype=of_x, drhs_grad_qtype=of_w))


def parts(ff, width, shards):
    """Returns how many parts `ff` hidden units are computed in where all is recomputed, in each of so many shards.

    A quarter of the width is a part's size, so that scores of hidden units and their gradients take no more than an
    input [B T D]. Where a mesh axis splits them each part is summed over it: there it is the width.
    """
    most = max(1, width // 4) if shards == 1 else width
    return next(count for count in range(1, ff + 1) if ff // shards % count == 0 and ff // shards // count <= most)


def _split_length():
    """Returns whether the mesh in context splits T, so that one axis of [B T] would bring all of it together."""
    return jax.sharding.get_abstract_mesh().shape.get('context', 1) > 1


LAYER_INPUT = 'layer_input'  # what a block calls its input, for 'offload' to find
FULL = ('full', 'offload')  # what recomputes all of a layer
POLICIES = {
    'full': None,
    'dots': jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    'offload': jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[], names_which_can_be_offloaded=[LAYER_INPUT], offload_src='device',
        offload_dst='pinned_host'),
}


def stack(block, length, *, remat='none', unroll=0, **fields):
    """Returns a module that applies the Linen class `block` `length` times, parameters stacked on axis 0 [L ...].

    The block is called as (x, layer, shared) -> (x, out): `layer` and `out` have a leading axis L, `shared` is the same
    for every layer. For the backward pass, `remat` recomputes nothing ('none'), all but products with weights ('dots'),
    or everything ('full'); 'offload' recomputes everything too, from inputs of layers that wait in the host's memory.
    One iteration of the loop holds `unroll` layers; 0 stands for one, but on a CPU that recomputes nothing for all of
    them: a loop keeps XLA from working on copies and layers together there, and XLA merges what is recomputed outside.
    """
    unroll = min(unroll, length) or (length if sharding.platform() == 'cpu' and remat == 'none' else 1)
    if remat != 'none':
        block = nn.remat(block, prevent_cse=unroll > 1, policy=POLICIES[remat])
    scanned = nn.scan(block, variable_axes={'params': 0}, split_rngs={'params': True}, in_axes=(0, nn.broadcast),
                      length=length, unroll=unroll, metadata_params={nn.PARTITION_NAME: 'layers'})
    return scanned(**fields)


def anew(function):
    """Returns function(x, *given), of which nothing but its arguments is kept for the gradient.

    The gradient computes it again, and not before it is itself called for: what `remat` makes again for a whole layer
    would be there from the beginning of the layer's backward pass to its end.
    """
    def backward(given, g):
        x, g = jax.lax.optimization_barrier((given[0], g))
        return jax.vjp(function, x, *given[1:])[1](g)
    made = jax.custom_vjp(function)
    made.defvjp(lambda *given: (function(*given), given), backward)
    return made


def norm(module, name, x, kind, epsilon=1e-5):
    """Returns x [... D] normalised over its last axis in float32, then scaled, in x's dtype.

    `kind` is 'rms' (Zhang and Sennrich 2019, arXiv:1910.07467), 'layer' (Ba et al. 2016, arXiv:1607.06450, no bias) or
    'layer_bias'.
    """
    return normalise(x, norm_weights(module, name, x.shape[-1], kind), kind, epsilon)


def norm_weights(module, name, size, kind):
    """Returns the parameters of a norm of this kind over `size` numbers: (scale,) or (scale, bias)."""
    scale = weight(module, f'{name}_scale', dict(norm=size), fill(1.0))
    return (scale, weight(module, f'{name}_bias', dict(norm=size), fill(0.0))) if kind == 'layer_bias' else (scale,)


def normalise(x, weights, kind, epsilon=1e-5):
    """Returns what `norm` does, given its parameters."""
    scale, *bias = weights
    return sum(bias, start=_standardise(x.astype(jnp.float32), kind != 'rms', epsilon) * scale).astype(x.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _standardise(x, centred, epsilon):
    """Returns x [... D] over its root mean square, with its mean taken off first if `centred`; the gradient needs only
    the result and one number a row.
    """
    return _standardise_forward(x, centred, epsilon)[0]


def _standardise_forward(x, centred, epsilon):
    if centred:
        x = x - jnp.mean(x, -1, keepdims=True)
    inverse = jax.lax.rsqrt(jnp.mean(jnp.square(x), -1, keepdims=True) + epsilon)
    return x * inverse, (x * inverse, inverse)


def _standardise_backward(centred, epsilon, given, g):
    y, inverse = given
    along = y * jnp.mean(g * y, -1, keepdims=True)
    return (inverse * (g - along - (jnp.mean(g, -1, keepdims=True) if centred else 0)),)


_standardise.defvjp(_standardise_forward, _standardise_backward)


def dropout(x, rate, key, rows, zigzag=None):
    """Returns x [B T D] with a fraction `rate` of its entries zeroed and the rest scaled up; x where key is None.

    What a row loses is drawn from the key and its number in `rows` [B], so that it is the same however rows are split.
    Tokens in the order of an attention.Zigzag lose what they would lose in the order of the text.
    """
    if key is None or trees.statically_zero(rate):
        return x
    share = 1 - jnp.float32(rate)  # so that a rate that is traced draws what one that is known does
    kept = jax.vmap(lambda row: jax.random.bernoulli(jax.random.fold_in(key, row), share, x.shape[1:]))(rows)
    return jnp.where(zigzag.scatter(kept) if zigzag else kept, x / share.astype(x.dtype), 0)


ACTIVATIONS = {
    'gelu': jax.nn.gelu,
    'relu': jax.nn.relu,
    'relu2': lambda x: jnp.square(jax.nn.relu(x)),
    'swiglu': jax.nn.silu,
    'geglu': jax.nn.gelu,
}
GATED = ('swiglu', 'geglu')


def embed(table, tokens):
    """Returns rows of `table` [V D] for tokens [B T], as [B T D]."""
    table = sharding.constrain(table, 'vocab', None) if _split_length() else table
    return sharding.constrain(_look_up(table, tokens), 'batch', 'length', None)


@jax.custom_vjp
def _look_up(table, tokens):
    """Returns table[tokens]; for a small vocabulary the gradient is a product with one-hot rows, not a slow scatter."""
    return jnp.take(table, tokens, axis=0, mode='clip')


def _look_up_forward(table, tokens):
    return _look_up(table, tokens), (tokens, table.shape[0])


def _look_up_backward(given, g):
    tokens, size = given
    if size > SMALL:
        return jnp.zeros((size, g.shape[-1]), g.dtype).at[tokens].add(g, mode='clip'), None
    if _split_length():
        return jnp.einsum('BTV,BTD->VD', jax.nn.one_hot(tokens, size, dtype=g.dtype), g), None
    hits = jax.nn.one_hot(tokens.reshape(-1), size, dtype=g.dtype)
    return jax.lax.dot_general(hits, g.reshape(-1, g.shape[-1]), (((0,), (0,)), ((), ()))), None


_look_up.defvjp(_look_up_forward, _look_up_backward)
