"""A causal language model: GPT-2, Llama, Qwen3, Gemma 3 and what lies between, by the values of its layers."""
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp

from lm import config
from lm.config import legacy
from lm.models import mup
from lm.models.embedding import Embedding, Head, padded
from lm.models.model import Auxiliary, TokenModel
from lm.models.mup import MupBase
from lm.models.transformer import Layer, Stack
from lm.nn import attention
from lm.nn.context import Context, Execution
from lm.nn.experts import Experts
from lm.nn.norms import NoNorm
from lm.nn.weights import apply, declare
from lm.optim import matrices
from lm.parallel import reductions


class States(NamedTuple):
    """What a model makes of a batch: x [B T D] after the final norm, the batch in the order of x, the Auxiliary.

    zigzag: that order where the mesh splits T, else None.
    """

    x: Any
    batch: dict
    auxiliary: Auxiliary
    zigzag: Any


@dataclass(frozen=True)
class Decoder(TokenModel):
    """A decoder-only transformer with `vocab` tokens: `depth` layers, all like `layer` or repeating a `pattern`.

    base: sizes of the model that learning rates were tuned on; initial values, logits, attention scores and the rates
    themselves are then scaled by muP, so that the best rate is the same here. prompt: whether the tokens of a prompt
    see later ones of it, as objective=PrefixLM trains for. execution: how it is computed.
    """

    vocab: config.Size
    depth: config.Size = 6
    width: config.Size = 384
    layer: Layer = field(default_factory=Layer)
    pattern: tuple[Layer, ...] = ()
    embedding: Embedding = field(default_factory=Embedding)
    head: Head = field(default_factory=Head)
    prompt: Literal['causal', 'bidirectional'] = 'causal'
    execution: Execution = field(default_factory=Execution)
    base: MupBase = field(default_factory=MupBase)

    MOVED: ClassVar[dict[str, str]] = legacy.DECODER

    def __post_init__(self):
        config.check(self)
        default, = (field.default_factory for field in fields(self) if field.name == 'layer')
        if self.pattern and self.layer != default():
            raise config.Error('layer is not used where there is a pattern; set model.pattern.0 and so on, and leave '
                               'model.layer out.')
        for layer in self.layers:
            layer.attention.head_size(self.width)  # raises where it does not divide
            if layer.cross:
                raise config.Error('layer.cross reads a memory and a Decoder has none; set layer.cross=None.')
        for name in ('bias_rate', 'count'):
            values = {getattr(layer.mlp, name) for layer in self.layers if isinstance(layer.mlp, Experts)}
            if len(values) > 1:
                raise config.Error(f'{name} is {" and ".join(map(str, sorted(values)))} in layers of one pattern; '
                                   'give all the same.')
        self.embedding.check(self.width)
        padded(self.vocab, self.execution.vocab_chunks)
        mup.base_model(self)

    @property
    def layers(self):
        """The pattern of layers, one where all are alike."""
        return self.pattern or (self.layer,)

    @property
    def stack(self):
        """The Stack of layers, attention scores scaled by muP."""
        base = mup.base_model(self)
        return Stack(tuple(mup.scaled(*pair, self.width, base.width)
                           for pair in zip(self.layers, base.layers, strict=True)), self.depth)

    @property
    def causal(self):
        """Whether no token sees a later one."""
        return all(layer.attention.causal for layer in self.layers)

    def base_shapes(self):
        base = mup.base_model(self)
        return None if base is self else jax.eval_shape(base.init, jax.random.key(0))

    def init(self, key):
        """Returns the parameters, a dict of float32 arrays drawn from key and scaled by muP."""
        params = super().init(key)
        views = matrices.of(params, self.axes(), self.base_shapes())
        return jax.tree.map(lambda p, view: p * view.width_ratio(matrices.initial), params, views)

    def declare(self, key):
        def outside(scope, tokens, context):
            table = self._table(scope)
            x = self._embed(scope, table, tokens, context)
            matrix = table if self.head.tied else self._output(scope)
            self.head(scope, self._final_norm(scope, x), matrix)
        tokens = jnp.zeros((1, 1), jnp.int32)
        return {**declare(outside, key, tokens, Context(tokens)), **self.stack.declare(key, self.width)}

    def _embed(self, scope, table, tokens, context):
        return self.embedding(scope, table, tokens, context, base_width=mup.base_model(self).width)

    def _final_norm(self, scope, x):
        layer = self.stack.layer(self.depth - 1)
        return (NoNorm() if layer.residual.normalised else layer.norm)(scope, 'final_norm', x)

    def hidden(self, params, tokens, context, **options):
        """Returns (x [B T D] after the final norm, the Outputs of layers, embeddings [B T D]); options: of a Stack."""
        keys = (None,) * 2 if context.key is None else jax.random.split(context.key)
        context = context._replace(rows=reductions.row_numbers(len(tokens)))
        start = apply(lambda scope, *args: self._embed(scope, self._table(scope), *args), params, tokens,
                      context._replace(key=keys[0]))
        x, outputs = self.stack(params, start, context._replace(key=keys[1], types=None), self.execution, **options)
        return apply(self._final_norm, params, x), outputs, start

    def logits(self, params, tokens, segments=None, positions=None):
        """Returns logits [B T V] in float32 for tokens [B T]; packed rows name their segments and positions [B T]."""
        x, *_ = self.hidden(params, tokens, _context(tokens, segments, positions))
        return self._scores(params, x)

    @property
    def _shrink(self):
        return mup.base_model(self).width / self.width

    def activations(self, params, tokens, segments=None, positions=None):
        """Returns {name: array} of what flows through the model for tokens [B T].

        'embedding' [B T D] enters the first layer. Of each layer, [L B T D]: what 'attention' and 'mlp' add, and the
        'residual' stream after it. 'logits' [B T V]. Experts add what they measured.
        """
        x, outputs, start = self.hidden(params, tokens, _context(tokens, segments, positions),
                                        capture=('attention', 'mlp', 'residual'))
        return {'embedding': start, **outputs.auxiliary, **outputs.captured, 'logits': self._scores(params, x)}

    def token_losses(self, params, batch, key=None, smoothing=0.0):
        """Returns (nll, log_z, Auxiliary): [B T] each in nats, of a batch with inputs, targets, perhaps packed.

        Tokens of its 'prefix' [B T], if any, are seen by those before them. Dropout is drawn from key; without one
        there is none. smoothing: see losses.cross_entropy.
        """
        states = self.states(params, batch, key)
        return *self.target_losses(params, states, smoothing), states.auxiliary

    def states(self, params, batch, key=None):
        """Returns the States of a batch, for all that is read off them; arguments as of token_losses."""
        batch, zigzag = attention.shard_sequence(batch)
        x, outputs, _ = self.hidden(params, batch['inputs'], batch_context(batch, zigzag, key))
        return States(x, batch, auxiliary(outputs.auxiliary), zigzag)

    def scores(self, params, states):
        """Returns the logits [B T V] of States in float32, in the order of the text."""
        scores = self._scores(params, states.x)
        return states.zigzag.gather(scores) if states.zigzag else scores

    def target_losses(self, params, states, smoothing=0.0):
        """Returns (nll, log_z) [B T] of the targets of States, in the order of the text."""
        scores = self._cross_entropy(params, states.x, states.batch['targets'], smoothing)
        return states.zigzag.gather(scores) if states.zigzag else scores

    def post_update(self, params, metrics):
        measured = [number for number in range(self.depth) if isinstance(self.stack.layer(number).mlp, Experts)]
        updated = []
        for name, numbers in self.stack.stacks(self.width).items():
            rows = [measured.index(number) for number in numbers if number in measured]
            own = {**metrics, 'load': metrics['load'][jnp.array(rows)]} if 0 < len(rows) < len(measured) else metrics
            stack, own = self.stack.layer(numbers[0]).mlp.post_update(params[name], own)
            params = {**params, name: stack}
            updated += [own] if rows or not measured else []
        return params, {**metrics, **jax.tree.map(lambda *values: jnp.max(jnp.stack(values), 0), *updated)}

    def flops(self, context):
        """Returns the model FLOPs of training on one token, forward and backward, without recomputation."""
        return 3 * (self.stack.flops(self.width, context) + self.head.flops(self.width, self.vocab))

    def prefill(self, params, tokens, lengths, slots):
        """Returns (logits [B V] after the last token, cache with `slots` slots) of prompts [B T] of lengths [B]."""
        x, cache = self.read(params, tokens, lengths, slots)
        last = jnp.take_along_axis(x, lengths[:, None, None] - 1, axis=1)
        return self._scores(params, last)[:, 0], cache

    def read(self, params, tokens, lengths, slots):
        """Returns (x [B T D] after the final norm, cache with `slots` slots) of prompts [B T] of lengths [B]."""
        if not self.causal:
            raise config.Error('a model that sees later tokens does not go on with a text; one that '
                               'objective=MaskedDiffusion trained draws whole ones, by lm.generate.unmask.')
        empty = self.stack.cache(self.width, tokens.shape[0], slots, self.execution.dtype)
        prefix = jnp.arange(tokens.shape[1]) < lengths[:, None] if self.prompt == 'bidirectional' else None
        x, outputs, _ = self.hidden(params, tokens, _context(tokens)._replace(prefix=prefix), cache=empty)
        return x, {'entries': outputs.cache, 'length': lengths}

    def decode(self, params, tokens, cache):
        """Returns (logits [B V], cache) after one more token [B] a row."""
        index = cache['length'][:, None]
        context = Context(positions=index, index=index)
        x, outputs, _ = self.hidden(params, tokens[:, None], context, cache=cache['entries'])
        return self._scores(params, x)[:, 0], {'entries': outputs.cache, 'length': cache['length'] + 1}


def _context(tokens, segments=None, positions=None):
    return Context(jnp.arange(tokens.shape[1])[None] if positions is None else positions, segments)


def batch_context(batch, zigzag=None, key=None):
    """Returns the Context of a batch in the order of its Zigzag, if any, with the key of dropout."""
    context = _context(batch['inputs'], batch.get('segments'), batch.get('positions'))
    return context._replace(key=key, zigzag=zigzag, types=batch.get('types'), prefix=batch.get('prefix'),
                            token_weights=token_weights(context.segments))


def token_weights(segments):
    """Returns Context.token_weights [B T]: over the mean over all shards of `data`, so that means of parts average."""
    if segments is None:
        return None
    present = (segments > 0).astype(jnp.float32)
    return present / jnp.maximum(reductions.pmean_data(jnp.mean(present)), 1e-9)


def auxiliary(measured):
    """Returns the Auxiliary of what layers measured: the mean of numbers [L], all of vectors [L E]."""
    metrics = {name: jnp.mean(value) if value.ndim == 1 else value for name, value in measured.items()}
    return Auxiliary(metrics.pop('loss', 0.0), metrics)
