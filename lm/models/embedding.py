"""From tokens to x [B T D] and from x to logits [B T V], for every model with a vocabulary."""
from dataclasses import dataclass, field

import jax.numpy as jnp

from lm import config
from lm.config.divisors import divisor_below
from lm.nn import losses
from lm.nn.dropout import dropout
from lm.nn.embedding import look_up
from lm.nn.norms import NoNorm, Norm
from lm.nn.positions import AbsolutePosition
from lm.nn.weights import einsum
from lm.parallel import reductions

LANES = 128


@dataclass(frozen=True)
class Embedding:
    """Rows of a table, times sqrt(D) where `scaled` (Gemma), plus absolute positions, then a norm (BERT) and dropout.
    """

    position: AbsolutePosition | None = None
    scaled: bool = False
    norm: Norm = field(default_factory=NoNorm)
    dropout: config.FractionBelowOne = 0.0

    def __post_init__(self):
        if self.position and not isinstance(self.position, AbsolutePosition):
            raise config.Error(f'{type(self.position).__name__} acts in attention, not on embeddings; '
                               'try model.layer.attention.position.')
        config.check(self)

    @property
    def limit(self):
        """The most tokens a text may have, 0 for any number."""
        return self.position.limit if self.position else 0

    def check(self, width):
        """Raises config.Error where positions cannot be added to embeddings of this width."""
        if self.position:
            self.position.check(width)

    def __call__(self, scope, table, tokens, context, *, base_width):
        """Returns x [B T D] of tokens [B T] by a table, a Weight [V D]; base_width: D, or that of the muP base."""
        x = look_up(table.value, tokens)
        if self.scaled:
            x = x * jnp.asarray(base_width ** 0.5, x.dtype)
        x = self.norm(scope, 'embedding_norm', self.add(scope, x, context))
        return dropout(x, self.dropout, context.key, context.rows, context.zigzag)

    def add(self, scope, x, context):
        """Returns x [B T D] with what tells equal tokens apart added, here positions."""
        return self.position.add(scope, x, context.positions) if self.position else x


@dataclass(frozen=True)
class Head:
    """Logits by the embedding's table where `tied`, else by a matrix; softcap * tanh(logits / softcap) if any.

    A subclass may have parameters of its own, in `transform` and `bias`.
    """

    tied: bool = True
    softcap: config.NonNegative = 0.0

    def __post_init__(self):
        config.check(self)

    def transform(self, scope, x):
        """Returns what is multiplied by the matrix, of x [B T D] after the final norm."""
        return x

    def bias(self, scope, size):
        """Returns what is added to the logits, an array [size], or None."""
        return None

    def flops(self, width, vocab):
        """Returns the FLOPs of one token's forward pass."""
        return 2 * width * vocab

    def __call__(self, scope, x, matrix, shrink=1.0):
        """Returns logits [B T V'] of x [B T D] by a Weight [V' D], or [D V'] where not tied.

        shrink: factor of what is multiplied by it, by which muP keeps logits of one size at any width.
        """
        x = reductions.gather_stream(self.transform(scope, x) * shrink, 'rows')
        logits = einsum('BTD,VD->BTV' if self.tied else 'BTD,DV->BTV', x, matrix)
        bias = self.bias(scope, logits.shape[-1])
        logits = logits if bias is None else logits + bias.astype(logits.dtype)
        return self.softcap * jnp.tanh(logits / self.softcap) if self.softcap else logits

    def cross_entropy(self, scope, x, matrix, targets, *, shrink, vocab, chunks, smoothing):
        """Returns (nll, log_z) [B T] of targets [B T], see losses; in `chunks` of the vocabulary logits are not stored.
        """
        if chunks == 1:
            return losses.cross_entropy(self(scope, x, matrix, shrink), targets, vocab, smoothing)
        table = matrix.value if self.tied else matrix.value.T
        x = reductions.gather_stream(self.transform(scope, x) * shrink, 'rows')
        return losses.chunked_cross_entropy(x, table, targets, losses.VocabHead(vocab, chunks, self.softcap, smoothing),
                                            self.bias(scope, len(table)))


@dataclass(frozen=True)
class NoHead(Head):
    """No head: of an encoder whose states are pooled, without one that was trained. It gives no loss."""

    def cross_entropy(self, scope, x, matrix, targets, **options):
        raise config.Error('a model of head=NoHead predicts no tokens; try lm embed, or model.head=MaskedHead where '
                           'training makes one.')


def padded(vocab, chunks):
    """Returns the vocabulary rounded up to whole lanes, so that any size shards; refuses chunks that do not divide it.
    """
    size = -(-vocab // LANES) * LANES
    if size % chunks:
        near = divisor_below(size, chunks)
        raise config.Error(f'vocab_chunks={chunks} does not divide the {size} rows of the output; '
                           f'try vocab_chunks={near}.')
    return size
