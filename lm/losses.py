"""Cross entropy with z-loss and smoothing, and masked means, all in float32."""
import jax
import jax.numpy as jnp

PADDING = -1e30


def cross_entropy(logits, targets, vocab, smoothing=0.0):
    """Returns (nll, log_z), each [...] in nats and float32, of logits [... V] and targets [...].

    Only the first `vocab` of the V classes exist; the rest pads the axis so that it shards. nll is the negative
    log-likelihood of the target, mixed with `smoothing` of the mean over the vocabulary (Szegedy et al. 2016). log_z is
    the log of the softmax's normaliser, whose square is the z-loss (Chowdhery et al. 2022).
    """
    classes = jnp.arange(logits.shape[-1])
    logits = jnp.where(classes < vocab, logits.astype(jnp.float32), PADDING)
    log_z = jax.nn.logsumexp(logits, axis=-1)
    nll = log_z - jnp.sum(jnp.where(targets[..., None] == classes, logits, 0), axis=-1)
    if smoothing:
        mean = jnp.sum(jnp.where(classes < vocab, logits, 0), axis=-1) / vocab
        nll = (1 - smoothing) * nll + smoothing * (log_z - mean)
    return nll, log_z


def masked_mean(values, weights):
    """Returns the mean of values [...] under weights [...]; 0 where no weight is positive."""
    return jnp.sum(values * weights) / jnp.maximum(jnp.sum(weights), 1e-9)
