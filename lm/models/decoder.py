"""A causal language model: GPT-2, Llama, Qwen3, Gemma 3 and what lies between, by fields."""
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm import attention, config, layers, losses, pipeline, positions, sharding
from lm.models import blocks
from lm.models.experts import Experts, moved
from lm.pipeline import Pipeline

LANES = 128


@dataclass(frozen=True)
class Decoder:
    """A decoder-only transformer with `vocab` tokens; a size of 0 means the usual one, named behind it.

    position: a component of lm.positions. windows: the sliding windows of successive layers, repeated over the depth, 0
    for full attention. norm_place: before a sublayer ('pre'), after it ('post', inside the residual), or 'both'.
    parallel: attention and MLP read the same input. experts: what takes the place of the MLP, if not None. softcap:
    c * tanh(x / c) on attention scores or on logits. dtype: of matrix products; parameters, norms, softmax and loss
    stay float32. quantized: of the blocks' products with weights, see layers.product. remat, unroll: see layers.stack.
    loss_parts: the vocabulary is scored in as many parts, so that logits [B T V] are not kept for the gradient but made
    again. kernel: which one computes attention ('auto': the platform's), an error where it cannot. pipeline: how rows
    go through the stages of a mesh that has some.
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
    experts: Experts | None = None
    tied: bool = True
    scaled_embedding: bool = False
    attention_softcap: float = 0.0
    logit_softcap: float = 0.0
    dropout: float = 0.0
    z_loss: float = 0.0
    smoothing: float = 0.0
    dtype: Literal['float32', 'bfloat16'] = 'float32'
    quantized: Literal['none', 'int8', 'fp8'] = 'none'
    loss_parts: int = 1
    remat: Literal['none', 'dots', 'full', 'offload'] = 'none'
    unroll: int = 0  # the platform's choice
    kernel: attention.Kernel = 'auto'
    pipeline: Pipeline = field(default_factory=Pipeline)

    def __post_init__(self):
        config.positive(self, 'vocab', 'depth', 'width', 'heads')
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
        if self.loss_parts < 1 or self.padded % self.loss_parts:
            near = max(n for n in range(1, max(2, self.loss_parts)) if self.padded % n == 0)
            raise config.Error(f'loss_parts={self.loss_parts} does not divide the {self.padded} rows of the output; '
                               f'try loss_parts={near}.')
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
        x, *_ = self._hidden(params, tokens, _Pass(segments=segments, positions=positions))
        return self._unembed(params, x)[..., :self.vocab].astype(jnp.float32)

    def token_losses(self, params, batch):
        """Returns (nll, log_z) [B T] in nats of a batch with inputs, targets and, if packed, segments and positions.

        These are the data's: without dropout and smoothing.
        """
        return self._token_losses(params, batch, None, 0.0)[:2]

    def _token_losses(self, params, batch, key, smoothing):
        batch, order = attention.spread(batch)
        packed = {name: batch[name] for name in ('segments', 'positions') if name in batch}
        x, _, routed = self._hidden(params, batch['inputs'], _Pass(key=key, zigzag=order, **packed))
        found = self._scored(params, x, batch['targets'], smoothing)
        return *(order.gather(found) if order else found), routed

    def _scored(self, params, x, targets, smoothing):
        if self.loss_parts == 1:
            return losses.cross_entropy(self._unembed(params, x), targets, self.vocab, smoothing)
        table = _Net(self).apply({'params': params}, method='table' if self.tied else 'output')
        scores = losses.Scores(self.vocab, self.loss_parts, self.logit_softcap, smoothing)
        return losses.cross_entropy_in_parts(x, table if self.tied else table.T, targets, scores)

    def loss(self, params, batch, key=None):
        """Returns (loss, metrics): the mean over tokens by weight, and {'loss': of the data alone, 'weight': sum}.

        Dropout is drawn from key; without one there is none. Experts add their losses to the first, and to the second
        'balance', 'router_z' and 'load' [L E].
        """
        nll, log_z, routed = self._token_losses(params, batch, key, self.smoothing)
        weights = batch['weights'] if 'weights' in batch else jnp.ones_like(nll)
        loss = losses.masked_mean(nll, weights)
        total = loss + self.z_loss * losses.masked_mean(jnp.square(log_z), weights) if self.z_loss else loss
        if self.experts:
            routed = {**routed, **{name: jnp.mean(routed[name]) for name in ('balance', 'router_z')}}
            total += self.experts.balance * routed['balance'] + self.experts.z_loss * routed['router_z']
        return total, {'loss': loss, 'weight': jnp.sum(weights), **routed}

    def adjusted(self, params, measured):
        """Returns (params, metrics) after a step: experts' bias moved, of their loads the largest over an even one."""
        if not self.experts:
            return params, measured
        load = measured['load']
        measured = {**measured, 'load': jnp.max(load) * self.experts.count}
        if not self.experts.bias_rate:
            return params, measured
        routed = params['blocks']['experts']
        routed = {**routed, 'router_bias': moved(routed['router_bias'], load, self.experts.bias_rate)}
        return {**params, 'blocks': {**params['blocks'], 'experts': routed}}, measured

    def prefill(self, params, tokens, lengths, slots):
        """Returns (logits [B V] after the last token, cache with `slots` slots) of prompts [B T] of lengths [B]."""
        shape = (self.depth, tokens.shape[0], slots, self.groups, self.size)
        empty = (jnp.zeros(shape, self.dtype), jnp.zeros(shape, self.dtype))
        x, cache, _ = self._hidden(params, tokens, _Pass(cache=empty))
        last = jnp.take_along_axis(x, lengths[:, None, None] - 1, axis=1)
        return self._last(params, last), {'entries': cache, 'length': lengths}

    def decode(self, params, tokens, cache):
        """Returns (logits [B V], cache) after one more token [B] a row."""
        index = cache['length'][:, None]
        given = _Pass(positions=index, index=index, cache=cache['entries'])
        x, entries, _ = self._hidden(params, tokens[:, None], given)
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
    zigzag: Any = None


class _Net(nn.Module):
    """Tokens [B T] -> hidden states [B T D], the extended cache, and what experts measured in each layer."""

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
        x = layers.dropout(x, model.dropout, keys[0], given.zigzag)
        windows = sorted(set(model.windows))
        kinds = jnp.array([windows.index(model.windows[i % len(model.windows)]) for i in range(model.depth)])
        shared = {'segments': given.segments, 'index': given.index, 'zigzag': given.zigzag,
                  'table': model.position.table(self, model.heads),
                  'angles': [model.position.angles(at, model.size, window) for window in windows]}
        layer = {'kind': kinds, 'cache': given.cache,
                 'key': None if given.key is None else jax.random.split(keys[1], model.depth)}
        x, (cache, routed) = self.layered(x, layer, shared)
        if not model.tied:
            self.output()
        return layers.norm(self, 'final_norm', x, model.norm, model.norm_epsilon), cache, routed

    def layered(self, x, layer, shared):
        """Returns (x, (cache, what experts measured)) after all layers, over the stages of the mesh if it has any."""
        model = self.model
        stack = partial(layers.stack, blocks.Block, remat=model.remat, unroll=model.unroll, model=model)
        if pipeline.stages() == 1 or layer['cache'] is not None or self.is_initializing():
            return stack(model.depth, name='blocks')(x, layer, shared)
        rows = {name: shared[name] for name in ('segments', 'angles')
                if any(len(each) == len(x) for each in jax.tree.leaves(shared[name]))}

        def apply(mine, x, rows, index):
            params, layer = mine
            if layer['key'] is not None:
                layer = {**layer, 'key': jax.vmap(jax.random.fold_in, (0, None))(layer['key'], index)}
            run = stack(len(layer['kind']), parent=None)
            return run.apply({'params': params}, x, layer, {**shared, **rows})
        params = self.get_variable('params', 'blocks')
        x, out = pipeline.run(apply, model.pipeline, (params, layer), x, rows)
        return sharding.constrain(x, 'rows', 'length', None), out

    @nn.compact
    def table(self):
        axes = {'vocab': self.model.padded, 'embed': self.model.width}
        return layers.weight(self, 'tokens', axes, layers.normal(0.02), self.model.dtype)

    @nn.compact
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
