"""Dropout whose masks do not depend on the mesh."""
import jax
import jax.numpy as jnp

from lm import trees


def dropout(x, rate, key, rows, zigzag=None):
    """Returns x [B T D] with a fraction `rate` of its entries zeroed and the rest scaled up; x where key is None.

    The mask depends on the key and the row's global number in `rows` [B] only, hence not on sharding or micro-batching.
    Tokens in the order of an attention.Zigzag lose what they would lose in the order of the text.
    """
    if key is None or trees.statically_zero(rate):
        return x
    share = 1 - jnp.float32(rate)  # so that a rate that is traced draws what one that is known does
    kept = jax.vmap(lambda row: jax.random.bernoulli(jax.random.fold_in(key, row), share, x.shape[1:]))(rows)
    return jnp.where(zigzag.scatter(kept) if zigzag else kept, x / share.astype(x.dtype), 0)
