"""The embedding's look-up, with a gradient that suits the size of its table."""
import jax
import jax.numpy as jnp

from lm.parallel import reductions, sharding

ONE_HOT = 1024  # tables up to this size get their gradient by a matrix product


def look_up(table, tokens):
    """Returns rows of `table` [V D] for tokens [B T], as [B T D]."""
    table = sharding.constrain(table, 'vocab', None) if sharding.splits('length') else table
    # Whole rows first: where XLA may split the look-up along T it gathers the table, and sums gradients as large as it.
    return reductions.scatter_stream(sharding.constrain(_look_up(table, tokens), 'batch', 'length', None))


@jax.custom_vjp
def _look_up(table, tokens):
    return jnp.take(table, tokens, axis=0, mode='clip')


def _look_up_forward(table, tokens):
    return _look_up(table, tokens), (tokens, table.shape[0])


def _look_up_backward(residuals, g):
    tokens, size = residuals
    if size > ONE_HOT:
        return jnp.zeros((size, g.shape[-1]), g.dtype).at[tokens].add(g, mode='clip'), None
    # For a small vocabulary a product with one-hot rows, where a scatter is slow on every platform.
    if sharding.splits('length'):
        return jnp.einsum('BTV,BTD->VD', jax.nn.one_hot(tokens, size, dtype=g.dtype), g), None
    hits = jax.nn.one_hot(tokens.reshape(-1), size, dtype=g.dtype)
    return jax.lax.dot_general(hits, g.reshape(-1, g.shape[-1]), (((0,), (0,)), ((), ()))), None


_look_up.defvjp(_look_up_forward, _look_up_backward)
