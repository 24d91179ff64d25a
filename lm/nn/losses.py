"""Cross entropy with z-loss and smoothing, whole or in chunks of the vocabulary, and masked means, all in float32."""
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp

from lm.parallel import reductions, sharding

PADDING = -1e30  # logit of a class that only pads the vocabulary


def cross_entropy(logits, targets, vocab, smoothing=0.0):
    """Returns (nll, log_z), each [...] in nats and float32, of logits [... V] and targets [...].

    Only the first `vocab` of the V classes are valid; the rest pads the axis so that it shards. nll is the negative
    log-likelihood of the target, mixed with `smoothing` of the mean over the vocabulary (Szegedy et al. 2016). log_z is
    the log of the softmax's normaliser, whose square is the z-loss (Chowdhery et al. 2022).
    """
    return _cross_entropy(logits, targets, vocab, smoothing)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _cross_entropy(logits, targets, vocab, smoothing):
    return _forward(logits, targets, vocab, smoothing)[0]


def _forward(logits, targets, vocab, smoothing):
    classes = jnp.arange(logits.shape[-1])
    valid = classes < vocab
    masked = jnp.where(valid, logits.astype(jnp.float32), PADDING)
    log_z = jax.nn.logsumexp(masked, axis=-1)
    nll = log_z - jnp.sum(jnp.where(targets[..., None] == classes, masked, 0), axis=-1)
    if smoothing:
        mean = jnp.sum(jnp.where(valid, masked, 0), axis=-1) / vocab
        nll = (1 - smoothing) * nll + smoothing * (log_z - mean)
    return (nll, log_z), (logits, targets, log_z)


def _backward(vocab, smoothing, residuals, cotangents):
    """Returns the gradient with respect to the logits, recomputed from them and log_z."""
    logits, targets, log_z = residuals
    head = VocabHead(vocab, chunks=1, smoothing=smoothing)
    dlogits = _dlogits(logits.astype(jnp.float32), jnp.arange(logits.shape[-1]), (targets, log_z), cotangents, head)
    return dlogits.astype(logits.dtype), None


def _dlogits(logits, classes, residuals, cotangents, head):
    """Returns the gradient [... C] with respect to float32 logits [... C] of `classes` [C]: softmax minus target.

    residuals: (targets, log_z) [...]. cotangents: the gradients [...] with respect to (nll, log_z). The target
    distribution is smoothed by head.smoothing over the valid classes.
    """
    targets, log_z = residuals
    dnll, dlog_z = (cotangent[..., None] for cotangent in cotangents)
    valid = classes < head.vocab
    probability = jnp.where(valid, jnp.exp(logits - log_z[..., None]), 0)
    target = (1 - head.smoothing) * (targets[..., None] == classes)
    target += jnp.where(valid, head.smoothing / head.vocab, 0)
    return (dnll + dlog_z) * probability - dnll * target


_cross_entropy.defvjp(_forward, _backward)


@dataclass(frozen=True)
class VocabHead:
    """The output head that turns hidden states into logits of `vocab` classes, computed in `chunks` one after another.

    softcap: logits become c * tanh(logits / c); 0 leaves them. smoothing: as in `cross_entropy`.
    """

    vocab: int
    chunks: int
    softcap: float = 0.0
    smoothing: float = 0.0


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def chunked_cross_entropy(x, table, targets, head, bias=None):
    """Returns (nll, log_z) [B T] as `cross_entropy` does, of hidden states x [B T D], a table [V D] and targets [B T].

    bias: of the logits [V], None for none. The logits [B T V] are never whole in memory: the logits of one chunk of the
    vocabulary, rows i, i + chunks, ... of the table, are reduced to running sums, and recomputed for the gradient.
    Under FSDP a chunk's rows are all-gathered where they are used and their gradient is reduce-scattered at once, so
    that no device holds the whole table or its whole gradient.
    """
    return _chunked_forward(x, table, targets, head, bias)[0]


def _chunks(table, head, bias):
    """Returns (rows [chunks V/chunks D] of a table [V D], indices [chunks], the bias [chunks V/chunks] or None).

    Rows are sharded as the table is.
    """
    rows = table.reshape(-1, head.chunks, table.shape[-1])
    rows = jnp.moveaxis(sharding.constrain(rows, 'vocab', None, 'embed'), 1, 0)
    return rows, jnp.arange(head.chunks), None if bias is None else bias.reshape(-1, head.chunks).T


def _chunk_logits(x, chunk, head):
    """Returns (classes [V/chunks], float32 logits [B T V/chunks]) of a chunk (rows [V/chunks D], index, bias)."""
    rows, index, bias = chunk
    classes = index + head.chunks * jnp.arange(rows.shape[0])
    logits = jnp.einsum('BTD,VD->BTV', x, rows, preferred_element_type=jnp.float32)
    logits = logits if bias is None else logits + bias
    if head.softcap:
        logits = head.softcap * jnp.tanh(logits / head.softcap)
    return classes, logits


def _chunked_forward(x, table, targets, head, bias):
    def add(carry, chunk):
        running_max, total, target, mean = carry
        classes, logits = _chunk_logits(x, chunk, head)
        valid = classes < head.vocab
        masked = jnp.where(valid, logits, PADDING)
        new_max = jnp.maximum(running_max, jnp.max(masked, axis=-1))
        total = total * jnp.exp(running_max - new_max) + jnp.sum(jnp.exp(masked - new_max[..., None]), axis=-1)
        target += jnp.sum(jnp.where(targets[..., None] == classes, masked, 0), axis=-1)
        mean += jnp.sum(jnp.where(valid, masked, 0), axis=-1) / head.vocab
        return (new_max, total, target, mean), None
    zero = jnp.zeros(targets.shape, jnp.float32)
    (max_logit, total, target, mean), _ = jax.lax.scan(add, (zero + PADDING, zero, zero, zero),
                                                     _chunks(table, head, bias))
    log_z = max_logit + jnp.log(total)
    nll = log_z - (1 - head.smoothing) * target - head.smoothing * mean
    return (nll, log_z), (x, table, targets, bias, log_z)


def _chunked_backward(head, residuals, cotangents):
    """Returns the gradients with respect to x, the table and the bias."""
    x, table, targets, bias, log_z = residuals

    def add(dx, chunk):
        rows, *_ = chunk
        classes, logits = _chunk_logits(x, chunk, head)
        dlogits = _dlogits(logits, classes, (targets, log_z), cotangents, head)
        if head.softcap:
            dlogits *= 1 - jnp.square(logits / head.softcap)
        dbias = None if bias is None else jnp.sum(dlogits, (0, 1))
        dlogits = dlogits.astype(rows.dtype)
        by_x = jnp.einsum('BTV,VD->BTD', dlogits, rows, preferred_element_type=jnp.float32)
        dx += sharding.constrain(by_x, 'rows', 'stream', None)
        return dx, (reductions.reduce_scatter(jnp.einsum('BTD,BTV->DV', x, dlogits), 'embed', 'vocab').T, dbias)
    dx, (drows, dbias) = jax.lax.scan(add, jnp.zeros(x.shape, jnp.float32), _chunks(table, head, bias))
    dbias = None if bias is None else dbias.T.reshape(bias.shape)
    return dx.astype(x.dtype), jnp.moveaxis(drows, 0, 1).reshape(table.shape), None, dbias


chunked_cross_entropy.defvjp(_chunked_forward, _chunked_backward)


def masked_mean(values, weights, total):
    """Returns the mean of values [...] under weights [...] that sum to `total`; 0 where no weight is positive."""
    return jnp.sum(values * weights) / jnp.maximum(total, 1e-9)
