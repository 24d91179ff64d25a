"""A causal language model: GPT-2, Llama, Qwen3, Gemma 3 and what lies between, by fields."""
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm import attention, config, layers, losses, positions, sharding

LANES = 128


@dataclass(frozen=True)
class Decoder:
    """A decoder-only transformer with `vocab` tokens; a size of 0 means the usual one, named behind it.

    position: a component of lm.positions. windows: the sliding windows of successive layers, repeated over the depth, 0
    for full attention. norm_place: before a sublayer ('pre'), after it ('post', inside the residual), or 'both'.
    parallel: attention and MLP read the same input. softcap: c * tanh(x / c) on attention scores or on logits. dtype:
    of matrix products; parameters, norms, softmax and loss stay float32. remat, unroll: see layers.stack.
    """

    vocab: int
    depth: int = 6
    width: int = 384
    heads: int = 6
    kv_heads: int = 0  # heads
    head_dim: int = 0  # width / heads
    ff: int = 0  # 4 * width
    position: positions.Position = field(default_factory=positions.Rope)
    windows: tuple[int, ...] = (0,)
    norm: Literal['rms', 'layer', 'layer_bias'] = 'rms'
    norm_place: Literal['pre', 'post', 'both'] = 'pre'
    norm_epsilon: float = 1e-5
    activation: Literal['gelu', 'relu', 'relu2', 'swiglu', 'geglu'] = 'gelu'
    bias: Literal['none', 'qkv', 'all'] = 'none'
    qk_norm: bool = False
    parallel: bool = False
    tied: bool = True
    scaled_embedding: bool = False
    attention_softcap: float = 0.0
    logit_softcap: float = 0.0
    dropout: float = 0.0
    z_loss: float = 0.0
    smoothing: float = 0.0
    dtype: Literal['float32', 'bfloat16'] = 'float32'
    remat: Literal['none', 'dots', 'full'] = 'none'
    unroll: int = 0  # all layers on a CPU, one elsewhere

    def __post_init__(self):
        for name in ('vocab', 'depth', 'width', 'heads'):
            if getattr(self, name) < 1:
                raise config.Error(f'{name}={getattr(self, name)} is not positive; try {name}=1 or more.')
        for name in ('kv_heads', 'head_dim', 'ff'):
            if getattr(self, name) < 0:
                raise config.Error(f'{name}={getattr(self, name)} is negative; try {name}=0 for the usual size.')
        if not self.windows or min(self.windows) < 0:
            raise config.Error(f'windows={self.windows} are not sizes from 0 on; try windows=(0,) for full attention.')
        if self.width % 2 and isinstance(self.position, positions.Sinusoidal):
            raise config.Error(f'width={self.width} is odd and Sinusoidal fills pairs; try width={self.width + 1}.')
        if not self.head_dim and self.width % self.heads:
            near = max(1, round(self.width / self.heads)) * self.heads
            raise config.Error(f'width={self.width} is not a multiple of heads={self.heads}; try width={near}.')
        if self.heads % self.groups:
            fits = max(n for n in range(1, self.groups) if self.heads % n == 0)
            raise config.Error(f'kv_heads={self.kv_heads} does not divide heads={self.heads}; try kv_heads={fits}.')
        if self.size % 2 and isinstance(self.position, positions.Rope):
            raise config.Error(f'head_dim={self.size} is odd and Rope turns pairs; try head_dim={self.size + 1}.')
        if not 0 <= self.dropout < 1:
            raise config.Error(f'dropout={self.dropout} is not in [0, 1); try dropout=0.1.')

    @property
    def groups(self):
        return self.kv_heads or self.heads

    @property
    def size(self):
        return self.head_dim or self.width // self.heads

    @property
    def padded(self):
        """The vocabulary rounded up to whole lanes, so that any size shards."""
        return -(-self.vocab // LANES) * LANES

    def init(self, key):
        """Returns the parameters, a dict of float32 arrays drawn from key."""
        return layers.unbox(self._boxed(key))[0]

    def axes(self):
        """Returns the logical axis names of every parameter, in a tree like that of the parameters."""
        return layers.unbox(jax.eval_shape(self._boxed, jax.random.key(0)))[1]

    def _boxed(self, key):
        return _Net(self).init(key, jnp.zeros((1, 1), jnp.int32), _Pass())['params']

    def _hidden(self, params, tokens, given):
        return _Net(self).apply({'params': params}, tokens, given)

    def _unembed(self, params, x):
        return _Net(self).apply({'params': params}, x, method='unembed')

    def logits(self, params, tokens, segments=None, positions=None):
        """Returns logits [B T V] in float32 for tokens [B T]; packed rows name their segments and positions [B T]."""
        x, _ = self._hidden(params, tokens, _Pass(segments=segments, positions=positions))
        return self._unembed(params, x)[..., :self.vocab].astype(jnp.float32)

    def token_losses(self, params, batch):
        """Returns (nll, log_z) [B T] in nats of a batch with inputs, targets and, if packed, segments and positions.

        These are the data's: without dropout and smoothing.
        """
        return self._token_losses(params, batch, None, 0.0)

    def _token_losses(self, params, batch, key, smoothing):
        packed = {name: batch[name] for name in ('segments', 'positions') if name in batch}
        x, _ = self._hidden(params, batch['inputs'], _Pass(key=key, **packed))
        return losses.cross_entropy(self._unembed(params, x), batch['targets'], self.vocab, smoothing)

    def loss(self, params, batch, key=None):
        """Returns (loss, metrics): the mean over tokens by weight, and {'loss': without z-loss, 'weight': sum}.

        Dropout is drawn from key; without one there is none.
        """
        nll, log_z = self._token_losses(params, batch, key, self.smoothing)
        weights = batch['weights'] if 'weights' in batch else jnp.ones_like(nll)
        loss = losses.masked_mean(nll, weights)
        total = loss + self.z_loss * losses.masked_mean(jnp.square(log_z), weights) if self.z_loss else loss
        return total, {'loss': loss, 'weight': jnp.sum(weights)}

    def prefill(self, params, tokens, lengths, slots):
        """Returns (logits [B V] after the last token, cache with `slots` slots) of prompts [B T] of lengths [B]."""
        shape = (self.depth, tokens.shape[0], slots, self.groups, self.size)
        empty = (jnp.zeros(shape, self.dtype), jnp.zeros(shape, self.dtype))
        x, cache = self._hidden(params, tokens, _Pass(cache=empty))
        last = jnp.take_along_axis(x, lengths[:, None, None] - 1, axis=1)
        return self._last(params, last), {'entries': cache, 'length': lengths}

    def decode(self, params, tokens, cache):
        """Returns (logits [B V], cache) after one more token [B] a row."""
        index = cache['length'][:, None]
        x, entries = self._hidden(params, tokens[:, None], _Pass(positions=index, index=index, cache=cache['entries']))
        return self._last(params, x), {'entries': entries, 'length': cache['length'] + 1}

    def _last(self, params, x):
        return self._unembed(params, x)[:, 0, :self.vocab].astype(jnp.float32)


@dataclass(frozen=True)
class _Pass:
    """What one forward pass is given beside tokens: of rows [B T], a dropout key, and keys and values to extend."""

    segments: Any = None
    positions: Any = None
    index: Any = None
    key: Any = None
    cache: Any = None


class _Net(nn.Module):
    """Tokens [B T] -> hidden states [B T D] and the extended cache."""

    model: Decoder

    @nn.compact
    def __call__(self, tokens, given):
        model = self.model
        at = jnp.arange(tokens.shape[1])[None] if given.positions is None else given.positions
        x = layers.embed(self.table(), tokens)
        if model.scaled_embedding:
            x = x * jnp.asarray(model.width ** 0.5, x.dtype)
        x = model.position.add(self, x, at)
        keys = (None,) * 2 if given.key is None else jax.random.split(given.key)
        x = layers.dropout(x, model.dropout, keys[0])
        windows = sorted(set(model.windows))
        kinds = jnp.array([windows.index(model.windows[i % len(model.windows)]) for i in range(model.depth)])
        shared = {'segments': given.segments, 'index': given.index, 'table': model.position.table(self, model.heads),
                  'angles': [model.position.angles(at, model.size, window) for window in windows]}
        layer = {'kind': kinds, 'cache': given.cache,
                 'key': None if given.key is None else jax.random.split(keys[1], model.depth)}
        blocks = layers.stack(_Block, model.depth, remat=model.remat, unroll=model.unroll,
                              model=model, name='blocks')
        x, cache = blocks(x, layer, shared)
        if not model.tied:
            self.output()
        return layers.norm(self, 'final_norm', x, model.norm, model.norm_epsilon), cache

    def table(self):
        axes = {'vocab': self.model.padded, 'embed': self.model.width}
        return layers.weight(self, 'tokens', axes, layers.normal(0.02), self.model.dtype)

    def output(self):
        axes = {'embed': self.model.width, 'vocab': self.model.padded}
        return layers.weight(self, 'output', axes, layers.normal(0.02), self.model.dtype)

    @nn.compact
    def unembed(self, x):
        if self.model.tied:
            logits = layers.einsum('BTD,VD->BTV', x, self.table())
        else:
            logits = layers.einsum('BTD,DV->BTV', x, self.output())
        cap = self.model.logit_softcap
        return cap * jnp.tanh(logits / cap) if cap else logits


class _Block(nn.Module):
    """One layer: x [B T D] -> x, with its slice of the cache extended."""

    model: Decoder

    @nn.compact
    def __call__(self, x, layer, shared):
        model = self.model
        norm = partial(layers.norm, self, kind=model.norm, epsilon=model.norm_epsilon)
        before = norm if model.norm_place != 'post' else lambda name, x: x
        after = norm if model.norm_place != 'pre' else lambda name, x: x
        keys = (None,) * 2 if layer['key'] is None else jax.random.split(layer['key'])
        attended, cache = _Attention(model, name='attention')(before('attention_norm', x), layer, shared)
        attended = layers.dropout(after('attention_post_norm', attended), model.dropout, keys[0])
        middle = x if model.parallel else x + attended
        fed = _MLP(model, name='mlp')(before('mlp_norm', middle))
        fed = layers.dropout(after('mlp_post_norm', fed), model.dropout, keys[1])
        x = x + attended + fed if model.parallel else middle + fed
        return sharding.constrain(x, 'batch', 'length', None), cache


class _Attention(nn.Module):
    model: Decoder

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
        y = layers.einsum('BTNH,NHD->BTD', mixed, out)
        if model.bias == 'all':
            y = y + layers.weight(self, 'out_bias', {'bias': model.width}, layers.fill(0.0), model.dtype)
        return y, cache

    def project(self, x, name, axes):
        w = layers.weight(self, name, {'embed': x.shape[-1], **axes}, layers.normal(0.02), self.model.dtype)
        y = layers.einsum('BTD,DNH->BTNH', x, w)
        if self.model.bias != 'none':
            y = y + layers.weight(self, f'{name}_bias', axes, layers.fill(0.0), self.model.dtype)
        return sharding.constrain(y, 'batch', 'length', next(iter(axes)), None)

    def attend(self, query, key, value, kind, shared):
        """Returns attention under the layer's own window, chosen by `kind` where layers differ."""
        model, table, segments = self.model, shared['table'], shared['segments']
        view = partial(attention.View, softcap=model.attention_softcap, index=shared['index'],
                       segments=None if segments is None else (segments, segments),
                       bias=None if table is None else partial(model.position.score, table))
        branches = [partial(attention.attend, view=view(window=window)) for window in sorted(set(model.windows))]
        if len(branches) == 1:
            return branches[0](query, key, value)
        return jax.lax.switch(kind, branches, query, key, value)


class _MLP(nn.Module):
    model: Decoder

    @nn.compact
    def __call__(self, x):
        model = self.model
        width, ff = model.width, model.ff or 4 * model.width
        activate = layers.ACTIVATIONS[model.activation]
        up = self.project(x, 'up', {'embed': width, 'ff': ff}, 0.02)
        gated = model.activation in layers.GATED
        hidden = activate(self.project(x, 'gate', {'embed': width, 'ff': ff}, 0.02)) * up if gated else activate(up)
        return self.project(hidden, 'down', {'ff': ff, 'embed': width}, 0.02 / (2 * model.depth) ** 0.5)

    def project(self, x, name, axes, scale):
        y = layers.einsum('BTD,DF->BTF', x, layers.weight(self, name, axes, layers.normal(scale), self.model.dtype))
        if self.model.bias == 'all':
            bias = {'bias': y.shape[-1]}
            y = y + layers.weight(self, f'{name}_bias', bias, layers.fill(0.0), self.model.dtype)
        return sharding.constrain(y, 'batch', 'length', 'ff' if name != 'down' else None)


def _write(slots, new, index):
    """Returns slots [B S K H] with new [B T K H] written at index [B T], or from slot 0 on."""
    if index is None:
        return jax.lax.dynamic_update_slice(slots, new.astype(slots.dtype), (0, 0, 0, 0))
    return slots.at[jnp.arange(slots.shape[0])[:, None], index].set(new.astype(slots.dtype))
