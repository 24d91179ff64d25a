"""The block that models stack: attention and MLP with their norms and residuals, by the fields of the model."""
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from lm.nn import attention, layers, positions
from lm.nn.experts import Mixture
from lm.parallel import reductions, sharding


class Block(nn.Module):
    """One layer: x [B T D] -> x, with its slice of the cache extended and what it measured.

    That is what its experts say, if there are any, and where `tapped` what it adds to x and x itself.
    """

    model: Any
    tapped: bool = False

    @nn.compact
    def __call__(self, x, layer, shared):
        model = self.model
        x = checkpoint_name(x, layers.LAYER_INPUT)
        norm = partial(layers.norm, self, kind=model.norm, epsilon=model.norm_epsilon)
        before = norm if model.norm_place != 'post' else lambda name, x: x
        after = norm if model.norm_place != 'pre' else lambda name, x: x
        keys = (None,) * 2 if layer['key'] is None else jax.random.split(layer['key'])
        weights = layers.norm_weights(self, 'attention_norm', x.shape[-1], model.norm) if before is norm else None
        attended, cache = Attention(model, name='attention')(x, weights, layer, shared)
        drop = partial(layers.dropout, rate=model.dropout, rows=shared['rows'], zigzag=shared['zigzag'])
        attended = drop(after('attention_post_norm', attended), key=keys[0])
        middle = x if model.parallel else x + attended
        fed, routed = self.feed(before('mlp_norm', middle))
        fed = drop(after('mlp_post_norm', fed), key=keys[1])
        x = x + attended + fed if model.parallel else middle + fed
        if self.tapped:
            routed = {**routed, 'attention': attended, 'mlp': fed, 'residual': x}
        return sharding.constrain(x, 'batch', 'length', None), (cache, routed)

    def feed(self, x):
        """Returns (the output of the MLP or of the experts, what the experts measured)."""
        model, experts = self.model, self.model.experts
        if experts is None:
            return MLP(model, model.ff or 4 * model.width, name='mlp')(x), {}
        y, routed = Mixture(model, name='experts')(x)
        return y + MLP(model, experts.shared * experts.ff, name='mlp')(x) if experts.shared else y, routed


class Attention(nn.Module):
    """x [B T D] -> what attention adds to it, and its slice of the cache; x is normalised before, if given weights."""

    model: Any

    @nn.compact
    def __call__(self, x, norm, layer, shared):
        model = self.model
        heads = {'heads': model.heads, 'head_dim': model.size}
        groups = {'kv_heads': model.groups, 'head_dim': model.size}
        project = layers.anew(self.projected) if model.remat in layers.FULL else self.projected
        query, key, value = project(x, norm, [
            self.declare(name, {'embed': x.shape[-1], **axes})
            for name, axes in (('query', heads), ('key', groups), ('value', groups))])
        if model.qk_norm:
            query = layers.norm(self, 'query_norm', query, 'rms', model.norm_epsilon)
            key = layers.norm(self, 'key_norm', key, 'rms', model.norm_epsilon)
        angles = jax.tree.map(lambda *each: jnp.stack(each)[layer['kind']] if each[1:] else each[0], *shared['angles'])
        query, key = positions.rotate(query, angles), positions.rotate(key, angles)
        cache = layer['cache']
        if cache is not None:
            cache = jax.tree.map(partial(_write, index=shared['index']), cache, (key, value))
            if shared['index'] is not None:
                key, value = cache
        mixed = self.attend(query, key, value, layer['kind'], shared)
        axes = {**heads, 'embed': model.width}
        out = layers.weight(self, 'out', axes, layers.normal(0.02 / (2 * model.depth) ** 0.5), model.dtype)
        y = layers.einsum('BTNH,NHD->BTD', mixed, reductions.scatter_gradient(out, *axes), model.quantized)
        if model.bias == 'all':
            y = y + layers.weight(self, 'out_bias', {'bias': model.width}, layers.fill(0.0), model.dtype)
        return y, cache

    def declare(self, name, axes):
        """Returns (weight, bias or None)."""
        w = layers.weight(self, name, axes, layers.normal(0.02), self.model.dtype)
        if self.model.bias == 'none':
            return w, None
        return w, layers.weight(self, f'{name}_bias', dict(list(axes.items())[1:]), layers.fill(0.0), self.model.dtype)

    def projected(self, x, norm, weights):
        """Returns queries [B T N H], keys and values [B T K H] of x [B T D], normalised if there are weights for it."""
        model = self.model
        x = x if norm is None else layers.normalise(x, norm, model.norm, model.norm_epsilon)

        def project(w, bias, heads):
            w = reductions.scatter_gradient(w, 'embed', heads, 'head_dim')
            y = layers.einsum('BTD,DNH->BTNH', x, w, model.quantized)
            return sharding.constrain(y if bias is None else y + bias, 'batch', 'length', heads, None)
        return [project(*each, heads) for each, heads in zip(weights, ('heads', 'kv_heads', 'kv_heads'), strict=True)]

    def attend(self, query, key, value, kind, shared):
        """Returns attention under the layer's own window, chosen by `kind` where layers differ."""
        model, table, segments = self.model, shared['table'], shared['segments']
        view = partial(attention.View, softcap=model.attention_softcap, scale=model.scale, index=shared['index'],
                       segments=None if segments is None else (segments, segments),
                       bias=None if table is None else (table, model.position.score),
                       kernel=model.kernel, zigzag=shared['zigzag'])
        branches = [partial(attention.attend, view=view(window=window)) for window in sorted(set(model.windows))]
        if len(branches) == 1:
            return branches[0](query, key, value)
        return jax.lax.switch(kind, branches, query, key, value)


class MLP(nn.Module):
    """x [B T D] -> x through `ff` hidden units: where all is recomputed, in parts, one by one; see layers.parts.

    So neither hidden states [B T F] nor a gathered matrix [D F] is ever whole in memory.
    """

    model: Any
    ff: int

    @nn.compact
    def __call__(self, x):
        model, sizes = self.model, {'embed': x.shape[-1], 'ff': self.ff}
        ins = [self.declare(name, sizes, 0.02) for name in ('up', 'gate')[:1 + (model.activation in layers.GATED)]]
        out, shift = self.declare('down', dict(reversed(sizes.items())), 0.02 / (2 * model.depth) ** 0.5)
        shards = _shards(self.ff)
        count = layers.parts(self.ff, x.shape[-1], shards) if model.remat in layers.FULL else 1
        if count == 1:
            y = _feed(model, x, ins, out.T)
        else:
            cut = partial(_cut, (shards, count))
            biases = jax.tree.map(lambda bias: cut([bias]), [bias for _, bias in ins])
            y = _feed_in_parts(model, shards, x, (cut([*(w for w, _ in ins), out.T]), biases))
        return sharding.constrain(y if shift is None else y + shift, 'batch', 'length', None)

    def declare(self, name, axes, scale):
        """Returns (weight, bias or None)."""
        w = layers.weight(self, name, axes, layers.normal(scale), self.model.dtype)
        if self.model.bias != 'all':
            return w, None
        return w, layers.weight(self, f'{name}_bias', {'bias': w.shape[-1]}, layers.fill(0.0), self.model.dtype)


def _feed(model, x, ins, out):
    """Returns x [B T D] through hidden units, given (w [D F], bias or None) of up and gate, if any, and out [D F]."""
    hidden = [_project(model, x, reductions.scatter_gradient(w, 'embed', 'ff'), bias) for w, bias in ins]
    out = reductions.scatter_gradient(out, 'embed', 'ff')
    return layers.einsum('BTF,DF->BTD', _activated(model, *hidden), out, model.quantized)


def _project(model, x, w, bias=None):
    y = layers.einsum('BTD,DF->BTF', x, w, model.quantized)
    return sharding.constrain(y if bias is None else y + bias, 'batch', 'length', 'ff')


def _activated(model, up, gate=None):
    activate = layers.ACTIVATIONS[model.activation]
    return activate(up) if gate is None else activate(gate) * up


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _feed_in_parts(model, shards, x, parts):
    """Returns the sum over parts [count ...] of `_feed_part`; the gradient keeps x alone, and makes all else again."""
    def add(y, part):
        return y + _feed_part(model, shards, x, part), None
    return jax.lax.scan(add, jnp.zeros_like(x), parts)[0]


def _feed_in_parts_backward(model, shards, given, g):
    x, parts = given

    def add(total, part):
        by_x, by_part = jax.vjp(partial(_feed_part, model, shards), x, part)[1](g)
        return total + by_x, by_part
    return jax.lax.scan(add, jnp.zeros_like(x), parts)


_feed_in_parts.defvjp(lambda model, shards, x, parts: (_feed_in_parts(model, shards, x, parts), (x, parts)),
                      _feed_in_parts_backward)


def _feed_part(model, shards, x, part):
    """Returns `_feed` of a part, whose matrices travel as one [D SXF], as `_cut` laid them, and multiply x as one."""
    w, biases = part
    w, many = reductions.scatter_gradient(w, 'embed', 'ff'), len(biases)
    ins, out = _unfold(w, shards, [many * w.shape[-1] // shards // (many + 1)])
    hidden = _unfold(_project(model, x, ins), shards, many)
    hidden = [h if bias is None else h + bias for h, bias in zip(hidden, biases, strict=True)]
    return layers.einsum('BTF,DF->BTD', _activated(model, *hidden), out, model.quantized)


def _unfold(w, shards, places):
    """Returns the arrays [... SF] that lie in turn in each of `shards` equal parts of the last axis, cut at places."""
    parts = jnp.split(w.reshape(*w.shape[:-1], shards, -1), places, -1)
    return [part.reshape(*w.shape[:-1], -1) for part in parts]


def _shards(ff):
    """Returns over how many devices the mesh in context splits `ff` hidden units."""
    size = jax.sharding.get_abstract_mesh().shape.get('tensor', 1)
    return 1 if ff % size else size


def _cut(sizes, arrays):
    """Returns `count` parts [count ... SXF] of X arrays [... F]: in each of the mesh's shards S of them, one by one."""
    shards, count = sizes
    split = jnp.stack([w.reshape(*w.shape[:-1], shards, count, -1) for w in arrays], -2)
    parts = jnp.moveaxis(split, -3, 0)
    parts = parts.reshape(*parts.shape[:-3], -1)
    return sharding.constrain(parts, None, *('embed', 'ff')[-(parts.ndim - 1):])


def _write(slots, new, index):
    """Returns slots [B S K H] with new [B T K H] written at index [B T], or from slot 0 on."""
    if index is None:
        return jax.lax.dynamic_update_slice(slots, new.astype(slots.dtype), (0, 0, 0, 0))
    return slots.at[jnp.arange(slots.shape[0])[:, None], index].set(new.astype(slots.dtype))
