"""Sampling from a masked diffusion model: hidden tokens are drawn a few at a time, all places at once."""
from functools import partial

import jax
import jax.numpy as jnp


@partial(jax.jit, static_argnums=(0, 2), static_argnames=('mask', 'steps'))
def unmask(model, params, shape, key, *, mask, steps=0, temperature=1.0):
    """Returns tokens of `shape` [B T] drawn in `steps` passes over the model (0: as many as tokens); mask: id of it.

    From all tokens hidden at t = 1 to none at t = 0; from t to s each hidden one is drawn with probability (t - s) / t
    and stays as it is drawn (Sahoo et al. 2024, arXiv:2406.07524, algorithm 1).
    """
    steps = steps or shape[1]

    def draw(step, tokens):
        drawing, choosing = jax.random.split(jax.random.fold_in(key, step))
        logits = model.logits(params, tokens).at[..., mask].set(-jnp.inf) / temperature
        drawn = jax.random.categorical(drawing, logits).astype(jnp.int32)
        now = jax.random.uniform(choosing, tokens.shape) < 1 / (steps - step)
        return jnp.where((tokens == mask) & now, drawn, tokens)
    return jax.lax.fori_loop(0, steps, draw, jnp.full(shape, mask, jnp.int32))
