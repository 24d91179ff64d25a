"""A causal language model: GPT-2, Llama, Qwen3, Gemma 3 and what lies between, by fields."""
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from lm import config
from lm.models.net import Net, Pass
from lm.nn import attention, layers, losses, positions
from lm.nn.experts import Experts, moved
from lm.optim import matrices
from lm.parallel.pipeline import Pipeline

LANES = 128


class Auxiliary(NamedTuple):
    """What a model adds to the loss of its data, by its own coefficients, and what it measured: {name: array}."""

    loss: jax.Array | float
    metrics: dict


@dataclass(frozen=True)
class Base:
    """Sizes in the model whose learning rates another takes over; 0 for what they are in that one."""

    width: int = 0
    heads: int = 0
    kv_heads: int = 0
    head_dim: int = 0
    ff: int = 0
    expert_ff: int = 0

    @property
    def given(self):
        """The sizes that are not 0, {name: size}."""
        return {name: size for name, size in vars(self).items() if size}

    def origin(self, model):
        """Returns a Decoder but for these sizes and without dropout; itself where none is given.

        Raises config.Error where they do not go together.
        """
        if not self.given:
            return model
        if self.expert_ff and model.experts is None:
            raise config.Error(f'base.expert_ff={self.expert_ff} is for experts and there are none; '
                               f'try base.ff={self.expert_ff}.')
        sizes = {name: size for name, size in self.given.items() if name != 'expert_ff'}
        try:
            experts = replace(model.experts, ff=self.expert_ff) if self.expert_ff else model.experts
            return replace(model, base=Base(), dropout=0.0, experts=experts, **sizes)
        except config.Error as error:
            raise config.Error(f'no rate is tuned on the sizes in base: {error}') from error


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
    go through the stages of a mesh that has some. base: sizes that were others in the model that learning rates were
    tuned on; initial values, logits, attention scores and the rates themselves are then scaled by muP, so that the best
    rate is the same here (Yang et al. 2022, arXiv:2203.03466).
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
    dtype: Literal['float32', 'bfloat16'] = 'float32'
    quantized: Literal['none', 'int8', 'fp8'] = 'none'
    loss_parts: int = 1
    remat: Literal['none', 'dots', 'full', 'offload'] = 'none'
    unroll: int = 0  # the platform's choice
    kernel: attention.Kernel = 'auto'
    pipeline: Pipeline = field(default_factory=Pipeline)
    base: Base = field(default_factory=Base)

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
        self.base.origin(self)

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

    @property
    def origin(self):
        """The model that learning rates were tuned on: this one but for the sizes in `base`."""
        return self.base.origin(self)

    @property
    def scale(self):
        """What attention scores are multiplied by: 1/sqrt(H), but 1/H for as much as H is more than the origin's."""
        return self.size ** -0.5 * (self.origin.size / self.size) ** 0.5

    @property
    def limit(self):
        """The most positions that it can read, 0 for any number."""
        return self.position.limit

    def base_shapes(self):
        """Returns the abstract parameters of the model that learning rates were tuned on, None where it is this one."""
        return None if self.origin is self else jax.eval_shape(self.origin.init, jax.random.key(0))

    def init(self, key):
        """Returns the parameters, a dict of float32 arrays drawn from key."""
        params, axes = layers.unbox(self._boxed(key))
        views = matrices.of(params, axes, self.base_shapes())
        return jax.tree.map(lambda p, view: p * view.ratio(matrices.initial), params, views)

    def axes(self):
        """Returns the logical axis names of every parameter, in a tree like that of the parameters."""
        return layers.unbox(jax.eval_shape(self._boxed, jax.random.key(0)))[1]

    def _boxed(self, key):
        return Net(self).init(key, jnp.zeros((1, 1), jnp.int32), Pass())['params']

    def _hidden(self, params, tokens, given):
        return Net(self).apply({'params': params}, tokens, given)

    def _unembed(self, params, x):
        return Net(self).apply({'params': params}, x, method='unembed')

    def logits(self, params, tokens, segments=None, positions=None):
        """Returns logits [B T V] in float32 for tokens [B T]; packed rows name their segments and positions [B T]."""
        x, *_ = self._hidden(params, tokens, Pass(segments=segments, positions=positions))
        return self._unembed(params, x)[..., :self.vocab].astype(jnp.float32)

    def activations(self, params, tokens, segments=None, positions=None):
        """Returns {name: array} of what flows through the model for tokens [B T].

        'embedding' [B T D] enters the first layer. Of each layer, [L B T D]: what 'attention' and 'mlp' add, and the
        'residual' stream after it. 'logits' [B T V]. Experts add what they measured.
        """
        given = Pass(segments=segments, positions=positions)
        x, _, seen = Net(self, tapped=True).apply({'params': params}, tokens, given)
        return {**seen, 'logits': self._unembed(params, x)[..., :self.vocab].astype(jnp.float32)}

    def token_losses(self, params, batch, key=None, smoothing=0.0):
        """Returns (nll, log_z) [B T] in nats of a batch with inputs, targets and, if packed, segments and positions;
        and the Auxiliary of its experts: 'balance', 'router_z' and 'load' [L E].

        Dropout is drawn from key; without one there is none.
        """
        batch, order = attention.spread(batch)
        packed = {name: batch[name] for name in ('segments', 'positions') if name in batch}
        x, _, routed = self._hidden(params, batch['inputs'], Pass(key=key, zigzag=order, **packed))
        found = self._scored(params, x, batch['targets'], smoothing)
        found = order.gather(found) if order else found
        if not self.experts:
            return *found, Auxiliary(0.0, {})
        routed = {**routed, **{name: jnp.mean(routed[name]) for name in ('balance', 'router_z')}}
        loss = self.experts.balance * routed['balance'] + self.experts.z_loss * routed['router_z']
        return *found, Auxiliary(loss, routed)

    def _scored(self, params, x, targets, smoothing):
        if self.loss_parts == 1:
            return losses.cross_entropy(self._unembed(params, x), targets, self.vocab, smoothing)
        table = Net(self).apply({'params': params}, method='table' if self.tied else 'output')
        scores = losses.Scores(self.vocab, self.loss_parts, self.logit_softcap, smoothing)
        return losses.cross_entropy_in_parts(x, table if self.tied else table.T, targets, scores)

    def post_update(self, params, measured):
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
        x, cache, _ = self._hidden(params, tokens, Pass(cache=empty))
        last = jnp.take_along_axis(x, lengths[:, None, None] - 1, axis=1)
        return self._last(params, last), {'entries': cache, 'length': lengths}

    def decode(self, params, tokens, cache):
        """Returns (logits [B V], cache) after one more token [B] a row."""
        index = cache['length'][:, None]
        given = Pass(positions=index, index=index, cache=cache['entries'])
        x, entries, _ = self._hidden(params, tokens[:, None], given)
        return self._last(params, x), {'entries': entries, 'length': cache['length'] + 1}

    def _last(self, params, x):
        return self._unembed(params, x)[:, 0, :self.vocab].astype(jnp.float32)
