"""Cross entropy with z-loss and smoothing, whole or in parts of the vocabulary, and masked means, all in float32."""
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp

from lm.parallel import reductions, sharding

PADDING = -1e30


def cross_entropy(logits, targets, vocab, smoothing=0.0):
    """Returns (nll, log_z), each [...] in nats and float32, of logits [... V] and targets [...].

    Only the first `vocab` of the V classes exist; the rest pads the axis so that it shards. nll is the negative
    log-likelihood of the target, mixed with `smoothing` of the mean over the vocabulary (Szegedy et al. 2016). log_z is
    the log of the softmax's normaliser, whose square is the z-loss (Chowdhery et al. 2022).
    """
    return _cross_entropy(logits, targets, vocab, smoothing)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _cross_entropy(logits, targets, vocab, smoothing):
    return _forward(logits, targets, vocab, smoothing)[0]


def _forward(logits, targets, vocab, smoothing):
    classes = jnp.arange(logits.shape[-1])
    known = jnp.where(classes < vocab, logits.astype(jnp.float32), PADDING)
    log_z = jax.nn.logsumexp(known, axis=-1)
    nll = log_z - jnp.sum(jnp.where(targets[..., None] == classes, known, 0), axis=-1)
    if smoothing:
        mean = jnp.sum(jnp.where(classes < vocab, known, 0), axis=-1) / vocab
        nll = (1 - smoothing) * nll + smoothing * (log_z - mean)
    return (nll, log_z), (logits, targets, log_z)


def _backward(vocab, smoothing, given, g):
    """Returns the gradient by the logits from them and log_z alone: softmax minus the smoothed target."""
    logits, targets, log_z = given
    of_nll, of_log_z = (each[..., None] for each in g)
    classes = jnp.arange(logits.shape[-1])
    known = classes < vocab
    chance = jnp.where(known, jnp.exp(logits.astype(jnp.float32) - log_z[..., None]), 0)
    target = (1 - smoothing) * (targets[..., None] == classes) + jnp.where(known, smoothing / vocab, 0)
    return ((of_nll + of_log_z) * chance - of_nll * target).astype(logits.dtype), None


_cross_entropy.defvjp(_forward, _backward)


@dataclass(frozen=True)
class VocabHead:
    """How hidden states become scores of `vocab` classes, in `chunks` of the vocabulary one after the other.

    softcap: scores become c * tanh(scores / c), 0 for not. smoothing: as in `cross_entropy`.
    """

    vocab: int
    chunks: int
    softcap: float = 0.0
    smoothing: float = 0.0


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def chunked_cross_entropy(x, table, targets, head):
    """Returns what `cross_entropy` does of hidden states x [B T D] and a table [V D], without logits [B T V] in memory.

    Each part of the table, rows i, i + parts, ..., is scored, reduced to running sums, and scored again for the
    gradient. Under fsdp a part is gathered where it is used and its gradient is whole and scattered at once, so that
    neither the table nor its gradient is ever whole on a device.
    """
    return _in_parts(x, table, targets, head)[0]


def _parts_of(table, head):
    """Returns the table [V D] as [parts V/parts D], each part spread over the mesh as the table is."""
    split = table.reshape(-1, head.chunks, table.shape[-1])
    return jnp.moveaxis(sharding.constrain(split, 'vocab', None, 'embed'), 1, 0)


def _scored(x, rows, index, head):
    """Returns (classes [V/parts], their scores [B T V/parts] in float32) of part `index`."""
    classes = index + head.chunks * jnp.arange(rows.shape[0])
    logits = jnp.einsum('BTD,VD->BTV', x, rows, preferred_element_type=jnp.float32)
    if head.softcap:
        logits = head.softcap * jnp.tanh(logits / head.softcap)
    return classes, logits


def _in_parts(x, table, targets, head):
    def add(until, part):
        top, total, target, mean = until
        classes, logits = _scored(x, *part, head)
        known = jnp.where(classes < head.vocab, logits, PADDING)
        higher = jnp.maximum(top, jnp.max(known, axis=-1))
        total = total * jnp.exp(top - higher) + jnp.sum(jnp.exp(known - higher[..., None]), axis=-1)
        target += jnp.sum(jnp.where(targets[..., None] == classes, known, 0), axis=-1)
        mean += jnp.sum(jnp.where(classes < head.vocab, known, 0), axis=-1) / head.vocab
        return (higher, total, target, mean), None
    zero = jnp.zeros(targets.shape, jnp.float32)
    parts = (_parts_of(table, head), jnp.arange(head.chunks))
    (top, total, target, mean), _ = jax.lax.scan(add, (zero + PADDING, zero, zero, zero), parts)
    log_z = top + jnp.log(total)
    nll = log_z - (1 - head.smoothing) * target - head.smoothing * mean
    return (nll, log_z), (x, table, targets, log_z)


def _in_parts_backward(head, given, g):
    x, table, targets, log_z = given
    of_nll, of_log_z = (each[..., None] for each in g)

    def add(dx, part):
        rows, _ = part
        classes, logits = _scored(x, *part, head)
        known = classes < head.vocab
        chance = jnp.where(known, jnp.exp(logits - log_z[..., None]), 0)
        target = (1 - head.smoothing) * (targets[..., None] == classes)
        target += jnp.where(known, head.smoothing / head.vocab, 0)
        slope = (of_nll + of_log_z) * chance - of_nll * target
        if head.softcap:
            slope *= 1 - jnp.square(logits / head.softcap)
        slope = slope.astype(rows.dtype)
        dx += jnp.einsum('BTV,VD->BTD', slope, rows, preferred_element_type=jnp.float32)
        return dx, reductions.reduce_scatter(jnp.einsum('BTD,BTV->DV', x, slope), 'embed', 'vocab').T
    parts = (_parts_of(table, head), jnp.arange(head.chunks))
    dx, drows = jax.lax.scan(add, jnp.zeros(x.shape, jnp.float32), parts)
    return dx.astype(x.dtype), jnp.moveaxis(drows, 0, 1).reshape(table.shape), None


chunked_cross_entropy.defvjp(_in_parts, _in_parts_backward)


def masked_mean(values, weights, total):
    """Returns the mean of values [...] under weights [...] that sum to `total`; 0 where no weight is positive."""
    return jnp.sum(values * weights) / jnp.maximum(total, 1e-9)
