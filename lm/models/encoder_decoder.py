"""An encoder that a decoder reads by cross attention: the original Transformer, T5, BART, by their layers."""
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp

from lm import config
from lm.models.embedding import Embedding, Head, padded
from lm.models.model import Auxiliary, TokenModel
from lm.models.transformer import Layer, Stack, refuse_experts
from lm.nn.context import Context, Execution
from lm.nn.layers import Attention
from lm.nn.norms import NoNorm
from lm.nn.positions import NoPE
from lm.nn.weights import apply, declare
from lm.parallel import reductions

SIDES = ('encoder', 'decoder')


@dataclass(frozen=True)
class Half:
    """The layers of an encoder or of a decoder: `depth`, all like `layer` or repeating a `pattern`."""

    depth: config.Size = 6
    layer: Layer = field(default_factory=Layer)
    pattern: tuple[Layer, ...] = ()

    def __post_init__(self):
        config.check(self)
        if self.pattern and self.layer != Layer():
            raise config.Error('layer is not used where there is a pattern; set pattern.0 and so on, with layer=Layer.')

    @property
    def stack(self):
        """The Stack of layers."""
        return Stack(self.pattern or (self.layer,), self.depth)

    def norm(self, scope, x):
        """Returns x [B T D] behind the last layer, normalised where its residual stream is not."""
        last = self.stack.layer(self.depth - 1)
        return (NoNorm() if last.residual.normalised else last.norm)(scope, 'final_norm', x)

    def hidden(self, params, embed, tokens, context, execution, **options):
        """Returns (x [B T D] after the final norm, the Outputs of layers) of tokens [B T]; options: of a Stack.

        embed(scope, tokens, context) returns the embeddings, and the context of layers.
        """
        keys = (None,) * 2 if context.key is None else jax.random.split(context.key)
        context = context._replace(rows=reductions.row_numbers(len(tokens)))
        x, context = apply(embed, params, tokens, context._replace(key=keys[0]))
        x, outputs = self.stack(params, x, context._replace(key=keys[1]), execution, **options)
        return apply(self.norm, params, x), outputs


def encoder():
    """Returns a Half whose tokens see each other in both directions."""
    return Half(layer=Layer(Attention(causal=False)))


def decoder():
    """Returns a Half whose tokens see those before them, and the memory."""
    return Half(layer=Layer(cross=Attention(causal=False, position=NoPE())))


@dataclass(frozen=True)
class ScaledHead(Head):
    """A Head of x / sqrt(D): T5 1.0, whose output shares the embedding's table."""

    def transform(self, scope, x):
        return x * x.shape[-1] ** -0.5


@dataclass(frozen=True)
class EncoderDecoder(TokenModel):
    """A sequence-to-sequence transformer (Vaswani et al. 2017, arXiv:1706.03762) with `vocab` tokens for both sides.

    start: id of the token that stands before the first of a target, by data.packing=pairs the end token. Batches have
    'encoder_inputs' [B S], perhaps packed: 'encoder_segments' and 'encoder_positions' [B S].
    """

    vocab: config.Size
    start: config.Count
    width: config.Size = 512
    encoder: Half = field(default_factory=encoder)
    decoder: Half = field(default_factory=decoder)
    embedding: Embedding = field(default_factory=Embedding)
    head: Head = field(default_factory=Head)
    execution: Execution = field(default_factory=Execution)

    continues = False

    def __post_init__(self):
        config.check(self)
        if self.start >= self.vocab:
            raise config.Error(f'start={self.start} is none of vocab={self.vocab} tokens; try the end token.')
        for side in SIDES:
            refuse_experts(self, getattr(self, side).stack.pattern)
            for layer in getattr(self, side).stack.pattern:
                for attention in filter(None, (layer.attention, layer.cross)):
                    attention.head_size(self.width)  # raises where it does not divide
                if bool(layer.cross) != (side == 'decoder'):
                    raise config.Error(f'a layer of the {side} {"reads no" if layer.cross else "has to read the"} '
                                       f'memory; try model.{side}.layer.cross={None if layer.cross else "Attention"}.')
                if layer.cross and (layer.cross.causal or layer.cross.position != NoPE()):
                    raise config.Error('tokens of a memory stand before no query and beside none; '
                                       'try cross.causal=false cross.position=NoPE.')
        self.embedding.check(self.width)
        padded(self.vocab, self.execution.vocab_chunks)

    @property
    def causal(self):
        """Whether no token of the target sees a later one."""
        return all(layer.attention.causal for layer in self.decoder.stack.pattern)

    def declare(self, key):
        def shared(scope):
            table = self._table(scope)
            self.head(scope, jnp.zeros((1, 1, self.width)), table if self.head.tied else self._output(scope))

        def own(scope, side, table):
            tokens = jnp.zeros((1, 1), jnp.int32)
            getattr(self, side).norm(scope, self._embed(scope, table, tokens, Context(tokens)))
        params = declare(shared, key)
        for number, side in enumerate(SIDES):
            key_of_side = jax.random.fold_in(key, number)
            blocks = getattr(self, side).stack.declare(key_of_side, self.width)
            params[side] = {**declare(own, key_of_side, side, params['tokens']), **blocks}
        return params

    def _embed(self, scope, table, tokens, context):
        return self.embedding(scope, table, tokens, context, base_width=self.width)

    def hidden(self, params, side, tokens, context, **options):
        """Returns (x [B T D] after the final norm, the Outputs of layers) of the encoder or the decoder."""
        table = apply(self._table, params)

        def embed(scope, tokens, context):
            return self._embed(scope, table, tokens, context), context
        return getattr(self, side).hidden(params[side], embed, tokens, context, self.execution, **options)

    def encode(self, params, tokens, segments=None, positions=None, key=None):
        """Returns the memory [B S D] of source tokens [B S]."""
        return self.hidden(params, 'encoder', tokens, _context(tokens, segments, positions)._replace(key=key))[0]

    def _read(self, params, batch, key):
        """Returns x [B T D] of the decoder of a batch."""
        if 'encoder_inputs' not in batch:
            raise config.Error('an EncoderDecoder reads pairs of texts; try data.packing=pairs with data.Parallel, or '
                               'objective=SpanCorruption, which makes pairs of plain text.')
        keys = (None,) * 2 if key is None else jax.random.split(key)
        segments = batch.get('encoder_segments')
        memory = self.encode(params, batch['encoder_inputs'], segments, batch.get('encoder_positions'), keys[0])
        context = _context(batch['inputs'], batch.get('segments'), batch.get('positions'))
        return self.hidden(params, 'decoder', batch['inputs'], context._replace(
            memory=memory, memory_segments=segments, key=keys[1]))[0]

    def logits(self, params, batch):
        """Returns logits [B T V] in float32 for the targets of a batch: 'encoder_inputs' [B S], 'inputs' [B T]."""
        return self._scores(params, self._read(params, batch, None))

    def token_losses(self, params, batch, key=None, smoothing=0.0):
        """Returns (nll, log_z, Auxiliary): [B T] each in nats, of the targets of a batch."""
        x = self._read(params, batch, key)
        return *self._cross_entropy(params, x, batch['targets'], smoothing), Auxiliary(0.0, {})

    def flops(self, context):
        """Returns the model FLOPs of training on a token of the target and one of the source, rows of `context` both.
        """
        sides = sum(getattr(self, side).stack.flops(self.width, context) for side in SIDES)
        return 3 * (sides + self.head.flops(self.width, self.vocab))

    def prefill(self, params, tokens, lengths, slots):
        """Returns (logits [B V] of the first token of the target, cache with `slots` slots) of sources [B S].

        lengths [B]: of the sources, whose other tokens are not read.
        """
        segments = (jnp.arange(tokens.shape[1]) < lengths[:, None]).astype(jnp.int32)
        memory = self.encode(params, tokens, segments)
        empty = self.decoder.stack.cache(self.width, len(tokens), slots, self.execution.dtype)
        first = jnp.full((len(tokens), 1), self.start, jnp.int32)
        x, outputs = self.hidden(params, 'decoder', first, _context(first)._replace(
            memory=memory, memory_segments=segments), cache=empty)
        cache = {'entries': outputs.cache, 'length': jnp.ones_like(lengths), 'segments': segments}
        return self._scores(params, x)[:, 0], cache

    def decode(self, params, tokens, cache):
        """Returns (logits [B V], cache) after one more token [B] a row."""
        index = cache['length'][:, None]
        context = Context(positions=index, index=index, memory_segments=cache['segments'])
        x, outputs = self.hidden(params, 'decoder', tokens[:, None], context, cache=cache['entries'])
        return self._scores(params, x)[:, 0], {**cache, 'entries': outputs.cache, 'length': cache['length'] + 1}


def _context(tokens, segments=None, positions=None):
    return Context(jnp.arange(tokens.shape[1])[None] if positions is None else positions, segments)
