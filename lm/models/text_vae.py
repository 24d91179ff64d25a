"""A variational autoencoder of text (Bowman et al. 2015, arXiv:1511.06349): encoder, latent vector, decoder."""
import abc
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp

from lm import config
from lm.models.embedding import Embedding, Head, padded
from lm.models.encoder import Mean, Pooling
from lm.models.encoder_decoder import Half, encoder
from lm.models.model import TokenModel
from lm.models.transformer import refuse_experts
from lm.nn.context import Context, Execution
from lm.nn.layers import INIT
from lm.nn.weights import apply, declare, fill, normal, weight


@dataclass(frozen=True)
class Condition(abc.ABC):
    """Base of the ways in which a decoder is given a latent vector z [B Z]."""

    prepended = 0  # how many vectors stand before those of tokens
    memory = False  # whether layers read it by cross attention

    def __post_init__(self):
        config.check(self)

    @abc.abstractmethod
    def __call__(self, scope, x, z, context):
        """Returns (x [B T D], context) that have z; in decoding, x is that of one token and context.index is set."""

    def project(self, scope, z, slots, width):
        """Returns z [B Z] as `slots` vectors, [B M D], at first as large as those of tokens."""
        axes = {'latent': z.shape[-1], 'slots': slots, 'embed': width}
        matrix = weight(scope, 'latent_in', axes, normal(0.02 * z.shape[-1] ** -0.5)).value
        return jnp.einsum('BZ,ZMD->BMD', z, matrix)


@dataclass(frozen=True)
class Added(Condition):
    """z, projected, is added to the embedding of every token."""

    def __call__(self, scope, x, z, context):
        return x + self.project(scope, z, 1, x.shape[-1]).astype(x.dtype), context


@dataclass(frozen=True)
class AsMemory(Condition):
    """Layers of the decoder read z, projected to `slots` vectors, by cross attention."""

    slots: config.Size = 4

    memory = True

    def __call__(self, scope, x, z, context):
        memory = self.project(scope, z, self.slots, x.shape[-1]).astype(x.dtype)
        return x, context._replace(memory=memory)


@dataclass(frozen=True)
class AsPrefix(Condition):
    """z, projected to `slots` vectors, stands before the first token."""

    slots: config.Size = 1

    @property
    def prepended(self):
        return self.slots

    def __call__(self, scope, x, z, context):
        prefix = self.project(scope, z, self.slots, x.shape[-1]).astype(x.dtype)
        later = context._replace(positions=context.positions + self.slots)
        if context.index is not None:
            return x, later._replace(index=context.index + self.slots)
        before = jnp.broadcast_to(jnp.arange(self.slots), (len(later.positions), self.slots))
        return jnp.concatenate([prefix, x], 1), later._replace(positions=jnp.concatenate([before, later.positions], 1))


@dataclass(frozen=True)
class TextVae(TokenModel):
    """p(z) = N(0, I) of `latent` numbers, q(z | text) a diagonal Gaussian by the encoder, p(text | z) by the decoder.

    condition: how the decoder is given z; AsMemory needs layers with cross attention. A row of a batch is a text.
    """

    vocab: config.Size
    latent: config.Size = 32
    width: config.Size = 256
    encoder: Half = field(default_factory=encoder)
    decoder: Half = field(default_factory=Half)
    condition: Condition = field(default_factory=Added)
    pooling: Pooling = field(default_factory=Mean)
    embedding: Embedding = field(default_factory=Embedding)
    head: Head = field(default_factory=Head)
    execution: Execution = field(default_factory=Execution)

    def __post_init__(self):
        config.check(self)
        for half in (self.encoder, self.decoder):
            for layer in half.stack.pattern:
                layer.attention.head_size(self.width)  # raises where it does not divide
        if any(layer.cross for layer in self.encoder.stack.pattern):
            raise config.Error('the encoder reads no memory; set encoder.layer.cross=None.')
        if any(bool(layer.cross) != self.condition.memory for layer in self.decoder.stack.pattern):
            kind = type(self.condition).__name__
            raise config.Error(f'condition={kind} reads {"a" if self.condition.memory else "no"} memory and layers of '
                               f'the decoder have {"no " * self.condition.memory}cross attention; '
                               f'try decoder.layer.cross={"Attention" if self.condition.memory else None}.')
        for half in (self.encoder, self.decoder):
            refuse_experts(self, half.stack.pattern)
        self.embedding.check(self.width)
        padded(self.vocab, self.execution.vocab_chunks)

    @property
    def causal(self):
        return all(layer.attention.causal for layer in self.decoder.stack.pattern)

    def declare(self, key):
        tokens, z = jnp.zeros((1, 1), jnp.int32), jnp.zeros((1, self.latent))

        def shared(scope):
            table = self._table(scope)
            self.head(scope, jnp.zeros((1, 1, self.width)), table if self.head.tied else self._output(scope))

        def of_encoder(scope, table):
            x = self.encoder.norm(scope, self._embed(scope, table, tokens, Context(tokens)))
            self._gaussian(scope, x, jnp.ones((1, 1)))

        def of_decoder(scope, table):
            x, _ = self.condition(scope, self._embed(scope, table, tokens, Context(tokens)), z, Context(tokens))
            self.decoder.norm(scope, x)
        params = declare(shared, key)
        for number, (side, own) in enumerate((('encoder', of_encoder), ('decoder', of_decoder))):
            of_side = jax.random.fold_in(key, number)
            params[side] = {**declare(own, of_side, params['tokens']),
                            **getattr(self, side).stack.declare(of_side, self.width)}
        return params

    def _embed(self, scope, table, tokens, context):
        return self.embedding(scope, table, tokens, context, base_width=self.width)

    def _gaussian(self, scope, x, present):
        """Returns the (mean, log variance) [B Z] of q(z | text), of the encoder's x [B T D]."""
        pooled = self.pooling(scope, x, present)
        return [pooled @ weight(scope, name, {'embed': self.width, 'latent': self.latent}, INIT).value
                + weight(scope, f'{name}_bias', {'latent': self.latent}, fill(0.0)).value
                for name in ('mean', 'log_variance')]

    def posterior(self, params, tokens, present=None, key=None):
        """Returns the (mean, log variance) [B Z] of q(z | text) of tokens [B T], of those that are `present` [B T]."""
        present = jnp.ones(tokens.shape) if present is None else present
        context = Context(jnp.arange(tokens.shape[1])[None], (present > 0).astype(jnp.int32), key=key)
        table = apply(self._table, params)

        def embed(scope, tokens, context):
            return self._embed(scope, table, tokens, context), context
        x, _ = self.encoder.hidden(params['encoder'], embed, tokens, context, self.execution)
        return apply(self._gaussian, params['encoder'], x, present)

    def hidden(self, params, tokens, z, context, **options):
        """Returns (x [B T D] after the final norm, the Outputs of layers) of the decoder, for tokens [B T], z [B Z]."""
        table = apply(self._table, params)

        def embed(scope, tokens, context):
            return self.condition(scope, self._embed(scope, table, tokens, context), z, context)
        x, outputs = self.decoder.hidden(params['decoder'], embed, tokens, context, self.execution, **options)
        return x[:, -tokens.shape[1]:], outputs

    def logits(self, params, tokens, z):
        """Returns logits [B T V] in float32 of the next token, after tokens [B T] of a text with latent z [B Z]."""
        x, _ = self.hidden(params, tokens, z, Context(jnp.arange(tokens.shape[1])[None]))
        return self._scores(params, x)

    def losses(self, params, batch, z, key=None):
        """Returns the negative log-likelihoods [B T] in nats of the targets of a batch, given z [B Z]."""
        context = Context(jnp.arange(batch['inputs'].shape[1])[None], key=key)
        x, _ = self.hidden(params, batch['inputs'], z, context)
        return self._cross_entropy(params, x, batch['targets'], 0.0)[0]

    def flops(self, context):
        """Returns the model FLOPs of training on one token, forward and backward."""
        halves = sum(half.stack.flops(self.width, context) for half in (self.encoder, self.decoder))
        return 3 * (halves + self.head.flops(self.width, self.vocab))

    def prefill(self, params, tokens, lengths, slots):
        """Returns (logits [B V] after the last token, cache) of the beginnings of texts [B T], of lengths [B].

        Their latent vectors are params['z'] [B Z], where there are any, else the mean of p(z).
        """
        z = params['z'] if 'z' in params else jnp.zeros((len(tokens), self.latent))
        before = self.condition.prepended
        empty = self.decoder.stack.cache(self.width, len(tokens), slots + before, self.execution.dtype)
        x, outputs = self.hidden(params, tokens, z, Context(jnp.arange(tokens.shape[1])[None]), cache=empty)
        last = jnp.take_along_axis(x, lengths[:, None, None] - 1, axis=1)
        return self._scores(params, last)[:, 0], {'entries': outputs.cache, 'length': lengths, 'z': z}

    def decode(self, params, tokens, cache):
        """Returns (logits [B V], cache) after one more token [B] a row."""
        index = cache['length'][:, None]
        x, outputs = self.hidden(params, tokens[:, None], cache['z'], Context(index, index=index),
                                 cache=cache['entries'])
        return self._scores(params, x)[:, 0], {**cache, 'entries': outputs.cache, 'length': cache['length'] + 1}

