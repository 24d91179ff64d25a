"""Cross entropy with z-loss and smoothing, and masked means, all in float32."""
from functools import partial

import jax
import jax.numpy as jnp

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


def masked_mean(values, weights):
    """Returns the mean of values [...] under weights [...]; 0 where no weight is positive."""
    return jnp.sum(values * weights) / jnp.maximum(jnp.sum(weights), 1e-9)
