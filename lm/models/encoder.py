"""Bidirectional encoders: BERT (Devlin et al. 2018), RoBERTa, ModernBERT, by the values of their parts."""
import abc
from dataclasses import dataclass, field
from functools import partial

import jax
import jax.numpy as jnp

from lm import config
from lm.models.decoder import Decoder
from lm.models.embedding import Embedding, Head
from lm.models.residuals import PostNorm
from lm.models.transformer import Layer
from lm.nn.activations import Activation, Gelu
from lm.nn.context import Context
from lm.nn.layers import INIT, MLP, Attention
from lm.nn.norms import LayerNorm, Norm
from lm.nn.positions import Learned, NoPE, Rope
from lm.nn.weights import apply, declare, einsum, fill, weight

NORM = LayerNorm(1e-12)
POSITIONS = Rope(160_000.0), Rope(10_000.0)  # of ModernBERT


@dataclass(frozen=True)
class TypedEmbedding(Embedding):
    """An Embedding that adds a row for the type of each token, Context.types, 0 where there are none (BERT)."""

    types: config.Size = 2

    def add(self, scope, x, context):
        table = weight(scope, 'types', {'types': self.types, 'embed': x.shape[-1]}, INIT).value
        rows = table[:1] if context.types is None else jnp.take(table, context.types, axis=0, mode='clip')
        return super().add(scope, x + rows.astype(x.dtype), context)


@dataclass(frozen=True)
class MaskedHead(Head):
    """A dense layer, an activation and a norm before the logits, and a bias on those: BERT's head of masked tokens.

    dense_bias: whether the dense layer has one too.
    """

    activation: Activation = field(default_factory=partial(Gelu, exact=True))
    norm: Norm = field(default_factory=lambda: NORM)
    dense_bias: bool = True

    def transform(self, scope, x):
        dense = weight(scope, 'dense', {'embed': x.shape[-1], 'hidden': x.shape[-1]}, INIT, x.dtype)
        x = einsum('BTD,DE->BTE', x, dense)
        if self.dense_bias:
            x = x + weight(scope, 'dense_bias', {'hidden': x.shape[-1]}, fill(0.0), x.dtype).value
        return self.norm(scope, 'dense_norm', self.activation(x))

    def bias(self, scope, size):
        return weight(scope, 'output_bias', {'vocab': size}, fill(0.0)).value

    def flops(self, width, vocab):
        return super().flops(width, vocab) + 2 * width ** 2


@dataclass(frozen=True)
class Pooling(abc.ABC):
    """Base of the ways from the vectors of tokens to one vector of their text."""

    def __post_init__(self):
        config.check(self)

    @abc.abstractmethod
    def __call__(self, scope, x, present):
        """Returns vectors [B D] in float32 of x [B T D], of the tokens that are `present` [B T], 1 or 0."""


@dataclass(frozen=True)
class Mean(Pooling):
    """The mean over the tokens of a text (Reimers and Gurevych 2019, arXiv:1908.10084)."""

    def __call__(self, scope, x, present):
        total = jnp.einsum('BTD,BT->BD', x, present.astype(x.dtype), preferred_element_type=jnp.float32)
        return total / jnp.maximum(jnp.sum(present, -1, keepdims=True), 1)


@dataclass(frozen=True)
class FirstToken(Pooling):
    """The vector of a text's first token as it is (Xiao et al. 2023, arXiv:2309.07597, BGE)."""

    def __call__(self, scope, x, present):
        return x[:, 0].astype(jnp.float32)


@dataclass(frozen=True)
class First(Pooling):
    """tanh of a dense layer of a text's first token (BERT)."""

    def __call__(self, scope, x, present):
        dense = weight(scope, 'pooler', {'embed': x.shape[-1], 'hidden': x.shape[-1]}, INIT).value
        bias = weight(scope, 'pooler_bias', {'hidden': x.shape[-1]}, fill(0.0)).value
        return jnp.tanh(x[:, 0].astype(jnp.float32) @ dense + bias)


def bert_layer(heads=12, dropout=0.0):
    """Returns BERT's Layer: attention to both sides, biases everywhere, norms after the residual connections."""
    return Layer(Attention(heads, causal=False, position=NoPE(), bias='all'), MLP(activation=Gelu(exact=True),
                 bias=True), norm=NORM, residual=PostNorm(), dropout=dropout)


@dataclass(frozen=True)
class Encoder(Decoder):
    """A Decoder whose tokens see both sides, with a vector for a whole text; by default BERT base without dropout.

    pooling: from the vectors of tokens to that of the text. classes: into how many classes a text is sorted by it, for
    objectives that need some, such as NextSentence.
    """

    depth: config.Size = 12
    width: config.Size = 768
    layer: Layer = field(default_factory=bert_layer)
    embedding: Embedding = field(default_factory=lambda: TypedEmbedding(Learned(512), norm=NORM))
    head: Head = field(default_factory=MaskedHead)
    pooling: Pooling = field(default_factory=Mean)
    classes: config.Count = 0

    def declare(self, key):
        def outside(scope, x):
            self._classify(scope, self.pooling(scope, x, jnp.ones(x.shape[:2])))
        return {**super().declare(key),
                **declare(outside, jax.random.fold_in(key, 1), jnp.zeros((1, 1, self.width)))}

    def logits(self, params, tokens, segments=None, positions=None, *, types=None):
        """Returns logits [B T V] in float32 for tokens [B T], of types [B T]; see Decoder.logits."""
        positions = jnp.arange(tokens.shape[1])[None] if positions is None else positions
        x, *_ = self.hidden(params, tokens, Context(positions, segments, types))
        return self._scores(params, x)

    def vectors(self, params, states):
        """Returns the pooled vector [B D] in float32 of the text of each row of States: all of it, or segment 1."""
        segments = states.batch.get('segments')
        present = jnp.ones(states.x.shape[:2]) if segments is None else (segments == 1).astype(jnp.float32)
        return apply(self.pooling, params, states.x, present)

    def class_logits(self, params, states):
        """Returns the logits [B C] of the class of each row of States."""
        return apply(self._classify, params, self.vectors(params, states))

    def _classify(self, scope, vectors):
        if not self.classes:
            return None
        matrix = weight(scope, 'classifier', {'embed': self.width, 'classes': self.classes}, INIT).value
        return vectors @ matrix + weight(scope, 'classifier_bias', {'classes': self.classes}, fill(0.0)).value


@dataclass(frozen=True)
class Unused(Norm):
    """No norm, with the parameters of one: where a layer lacks a norm that others of its stack have."""

    norm: Norm

    def weights(self, scope, name, size):
        return self.norm.weights(scope, name, size)

    def normalise(self, x, weights):
        return x


@dataclass(frozen=True)
class FirstLayer(Layer):
    """A layer whose attention reads embeddings that are normalised already (ModernBERT)."""

    def norm_of(self, name):
        return Unused(self.norm) if name == 'attention' else self.norm


def modern_bert(vocab, depth=22, width=768, heads=12, *, ff=1152, window=128, every=3,
                positions=POSITIONS, epsilon=1e-5, **fields):
    """Returns ModernBERT (Warner et al. 2024, arXiv:2412.13663), by default base, as an Encoder with other `fields`.

    Every `every`-th layer from the first attends to all tokens; the others to a window of `window`, half on each side.
    positions: of the former and of the latter. No biases but that of the logits; norms come first and follow the
    embedding.
    """
    norm = LayerNorm(epsilon, bias=False)

    def layer(number):
        near = number % every > 0
        attention = Attention(heads, causal=False, window=window // 2 + 1 if near else 0,
                              position=positions[near])
        return (Layer if number else FirstLayer)(attention, MLP(ff, Gelu(exact=True), gated=True), norm=norm)
    return Encoder(vocab, depth, width, pattern=tuple(map(layer, range(depth))), **{
        'embedding': Embedding(norm=norm), 'head': MaskedHead(norm=norm, dense_bias=False), **fields})
