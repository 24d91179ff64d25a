"""The block that models stack: attention and MLP with their norms and residuals, by the fields of the model."""
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from lm import attention, layers, positions, sharding
from lm.models.experts import Mixture


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
        attended, cache = Attention(model, name='attention')(before('attention_norm', x), layer, shared)
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
    model: Any

    @nn.compact
    def __call__(self, x, layer, shared):
        model = self.model
        heads = {'heads': model.heads, 'head_dim': model.size}
        groups = {'kv_heads': model.groups, 'head_dim': model.size}
        query = self.project(x, 'query', heads)
        key, value = self.project(x, 'key', groups), self.project(x, 'value', groups)
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
        y = layers.einsum('BTNH,NHD->BTD', mixed, sharding.scatter_gradient(out, *axes), model.quantized)
        if model.bias == 'all':
            y = y + layers.weight(self, 'out_bias', {'bias': model.width}, layers.fill(0.0), model.dtype)
        return y, cache

    def project(self, x, name, axes):
        w = layers.weight(self, name, {'embed': x.shape[-1], **axes}, layers.normal(0.02), self.model.dtype)
        y = layers.einsum('BTD,DNH->BTNH', x, sharding.scatter_gradient(w, 'embed', *axes), self.model.quantized)
        if self.model.bias != 'none':
            y = y + layers.weight(self, f'{name}_bias', axes, layers.fill(0.0), self.model.dtype)
        return sharding.constrain(y, 'batch', 'length', next(iter(axes)), None)

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
    """x [B T D] -> x through `ff` hidden units: where all is recomputed, in parts of D units or less, one by one.

    So neither hidden states [B T F] nor a gathered matrix [D F] is ever whole in memory.
    """

    model: Any
    ff: int

    @nn.compact
    def __call__(self, x):
        model, sizes = self.model, {'embed': x.shape[-1], 'ff': self.ff}
        weights = [self.declare(name, sizes, 0.02) for name in ('up', 'gate')[:1 + (model.activation in layers.GATED)]]
        out, shift = self.declare('down', dict(reversed(sizes.items())), 0.02 / (2 * model.depth) ** 0.5)
        shards = _shards(self.ff)
        count = layers.parts(self.ff // shards, x.shape[-1] / shards) if model.remat in ('full', 'offload') else 1
        given = weights, out.T
        if count == 1:
            y = _feed(model, x, given)
        else:
            add = jax.checkpoint(lambda y, part: (y + _feed(model, x, part), None), prevent_cse=False)
            y, _ = jax.lax.scan(add, jnp.zeros_like(x), jax.tree.map(partial(_cut, shards, count), given))
        return sharding.constrain(y if shift is None else y + shift, 'batch', 'length', None)

    def declare(self, name, axes, scale):
        """Returns (weight, bias or None)."""
        w = layers.weight(self, name, axes, layers.normal(scale), self.model.dtype)
        if self.model.bias != 'all':
            return w, None
        return w, layers.weight(self, f'{name}_bias', {'bias': w.shape[-1]}, layers.fill(0.0), self.model.dtype)


def _feed(model, x, given):
    """Returns x [B T D] through hidden units, given ([(w [D F], bias [F] or None) of up and, if any, gate], [D F])."""
    def project(w, bias):
        y = layers.einsum('BTD,DF->BTF', x, sharding.scatter_gradient(w, 'embed', 'ff'), model.quantized)
        return sharding.constrain(y if bias is None else y + bias, 'batch', 'length', 'ff')
    weights, out = given
    up, *gate = (project(*each) for each in weights)
    activate = layers.ACTIVATIONS[model.activation]
    hidden = activate(gate[0]) * up if gate else activate(up)
    return layers.einsum('BTF,DF->BTD', hidden, sharding.scatter_gradient(out, 'embed', 'ff'), model.quantized)


def _shards(ff):
    """Returns over how many devices the mesh in context splits `ff` hidden units."""
    size = jax.sharding.get_abstract_mesh().shape.get('tensor', 1)
    return 1 if ff % size else size


def _cut(shards, count, w):
    """Returns `count` parts [count ... F/count] of w [... F], each split over the mesh as w is."""
    split = jnp.moveaxis(w.reshape(*w.shape[:-1], shards, count, -1), -2, 0)
    return sharding.constrain(split.reshape(count, *w.shape[:-1], -1), None, *('embed', 'ff')[-w.ndim:])


def _write(slots, new, index):
    """Returns slots [B S K H] with new [B T K H] written at index [B T], or from slot 0 on."""
    if index is None:
        return jax.lax.dynamic_update_slice(slots, new.astype(slots.dtype), (0, 0, 0, 0))
    return slots.at[jnp.arange(slots.shape[0])[:, None], index].set(new.astype(slots.dtype))
