"""Parameters: declared once by `weight`, multiplied once by `einsum`.

From the logical axis names given to `weight` follow sharding, weight decay, Muon's matrices and muP. A parameter is an
array or a `Leaf`, a node of the parameter tree that multiplies in its own way, such as Int8 and LoRA.
"""
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from lm import config
from lm.parallel import reductions, sharding


@struct.dataclass
class Weight(nn.meta.AxisMetadata):
    """A parameter with the logical name of each of its axes."""

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


class Scope(nn.Module):
    """The one Linen module: calls `function(scope, *args)`, and keeps the parameters that it declares by name."""

    function: Callable

    @nn.compact
    def __call__(self, *args):
        return self.function(self, *args)


def repeated(function, count, name):
    """Returns a Scope `name` with `count` times the parameters of function(scope, x, *args) -> (x, out), [count ...].

    For `init` alone: what it draws is what it drew when Linen's scan ran the layers too.
    """
    scanned = nn.scan(Scope, variable_axes={'params': 0}, split_rngs={'params': True}, in_axes=nn.broadcast,
                      length=count, metadata_params={nn.PARTITION_NAME: 'layers'})
    return scanned(function, name=name)


def declare(function, key, *args):
    """Returns the parameters that function(scope, *args) declares, a dict of Weights drawn from key."""
    return Scope(function).init(key, *args).get('params', {})


def apply(function, params, *args):
    """Returns function(scope, *args) of declared parameters."""
    return Scope(function).apply({'params': params}, *args)


def normal(scale):
    """Returns an initializer drawing from a normal distribution with standard deviation `scale`."""
    return lambda key, shape: scale * jax.random.normal(key, shape, jnp.float32)


def fill(value):
    """Returns an initializer of a constant."""
    return lambda key, shape: jnp.full(shape, value, jnp.float32)


def weight(scope, name, axes, init, dtype=jnp.float32):
    """Returns parameter `name` of a scope as a Weight: stored in float32 and cast to `dtype` for use; a Leaf as it is.

    `axes` maps each logical axis name to its size, in order, e.g. {'embed': D, 'heads': N, 'head_dim': H}.
    """
    names, shape = tuple(axes), tuple(axes.values())
    value = scope.param(name, lambda key: Weight(init(key, shape), names))
    if not isinstance(value, Leaf):
        value = jnp.asarray(reductions.embed_major_gradient(value, names), dtype)
    return Weight(value, names)


def unbox(tree):
    """Returns (params, axes): the values of a tree of Weights, and their logical axis names."""
    def is_weight(node):
        return isinstance(node, Weight)
    return (jax.tree.map(lambda leaf: leaf.value, tree, is_leaf=is_weight),
            jax.tree.map(lambda leaf: leaf.names, tree, is_leaf=is_weight))


class Leaf:
    """A node of the parameter tree in place of an array; its first field has the shape of that array."""

    def dot(self, spec, x):
        """Returns einsum(spec, x, the array that it stands for)."""
        raise NotImplementedError(f'{type(self).__name__} has no dot.')


@struct.dataclass
class Int8(Leaf):
    """A matrix in 8 bits: values int8, scale [...] of its outputs, the axes of `values` that are not contracted."""

    values: Any
    scale: Any

    def dot(self, spec, x):
        return jnp.einsum(spec, x, self.values.astype(x.dtype)) * self.scale.astype(x.dtype)


@struct.dataclass
class LoRA(Leaf):
    """base + alpha a b, a [contracted r] and b [r outputs] (Hu et al. 2021, arXiv:2106.09685)."""

    base: Any
    a: Any
    b: Any
    alpha: Any

    def dot(self, spec, x):
        inputs, out = spec.split('->')
        left, right = inputs.split(',')
        rows, contracted = [''.join(c for c in left if (c in right) == inside) for inside in (False, True)]
        columns = ''.join(c for c in right if c not in left)
        low = jnp.einsum(f'{left},{contracted}r->{rows}r', x, self.a.astype(x.dtype))
        base = self.base.dot(spec, x) if isinstance(self.base, Leaf) else jnp.einsum(spec, x, self.base.astype(x.dtype))
        return base + self.alpha.astype(x.dtype) * jnp.einsum(f'{rows}r,r{columns}->{out}', low, self.b.astype(x.dtype))


def einsum(spec, x, w, precision='none'):
    """Returns einsum(spec, x, w) of activations x [... contracted] and a Weight, whatever it is.

    The weight is gathered here for all that multiply by it, and its gradient reduce-scattered, by its axis names.
    """
    if isinstance(w.value, Leaf):
        return w.value.dot(spec, x)
    return project(spec, x, reductions.reduce_scatter_gradient(w.value, *w.names), precision)


def project(spec, x, w, precision='none'):
    """Returns einsum(spec, x, w) of activations and an array, as one product of two matrices; see `product`.

    The contracted letters end x and the leading letters of x begin the result, as in 'BTD,DNH->BTNH'.
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
    # [B T] as one axis: the backward pass contracts over one axis, which XLA's CPU backend needs to be fast.
    # Where the mesh splits T, of x or of the result, flattening would gather it.
    x = x.reshape(*(lead if sharding.splits('stream') else (math.prod(lead),)), -1)
    return product(x, w, precision).reshape(*lead, *columns)


def product(x, w, precision):
    """Returns x [... D] times w [D F], with both rounded to 8 bits by rows and columns where `precision` says so.

    'int8': the gradient by x too; 'fp8': both gradients too, of which the incoming one is float8_e5m2 for its range and
    all else float8_e4m3fn (Micikevicius et al. 2022, arXiv:2209.05433). Raises config.Error where qwix is absent.
    """
    dimensions = (((x.ndim - 1,), (0,)), ((), ()))
    if precision == 'none':
        return jax.lax.dot_general(x, w, dimensions)
    try:
        from qwix._src.core.dot_general_qt import DotGeneralQtConfig, dot_general_qt
    except ImportError as error:
        raise config.Error(f"precision={precision} needs qwix; try pip install 'lm[quant]'.") from error
    kinds = {'int8': ('int8', 'int8', None), 'fp8': ('float8_e4m3fn', 'float8_e5m2', 'float8_e5m2')}[precision]
    inputs, of_x, of_w = kinds
    return dot_general_qt(x, w, dimensions, DotGeneralQtConfig(
        lhs_qtype=inputs, rhs_qtype=inputs, dlhs_grad_qtype=of_x, drhs_grad_qtype=of_w))
