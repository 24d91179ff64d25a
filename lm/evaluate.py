"""How well a model predicts text: loss, perplexity, bits per byte, by source."""
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from lm.parallel import sharding


def score(model, params, stream, mesh, batches=0):
    """Returns {'loss' in nats a token, 'perplexity', 'bits_per_byte', 'tokens', 'loss/<source>' where there are more}.

    The stream is a Pass or a Strided; `batches` bounds how many of its batches are read, 0 for all. Bits per byte are
    counted by the bytes of the text, so that tokenizers compare.
    """
    return scores(total(partial(_sums, model, len(stream.sources), params), stream, mesh, batches), stream)


def total(sums, stream, mesh, batches=0):
    """Returns the arrays sums(batch) of a stream's batches added up in float64; `batches` bounds how many, 0 for all.
    """
    count = min(batches, stream.batches) if batches else stream.batches
    with jax.set_mesh(mesh):
        rows = sharding.rows(stream.batch, mesh)
        parts = []
        for i in range(count):
            batch = sharding.put(stream.batch_at(i, rows), mesh, stream.batch)
            jax.block_until_ready(parts[-1:])  # on CPU, hosts would run batches at once in another order, and lock
            parts.append(sums(batch))
    return np.sum(jax.device_get(parts), axis=0, dtype=np.float64)


def scores(sums, stream):
    """Returns the metrics that `score` returns, from a stream's sums [sources 2] of losses in nats and of weights."""
    nll, tokens = sums.T
    loss = nll.sum() / max(tokens.sum(), 1)
    scores = {'loss': loss, 'perplexity': math.exp(min(loss, 700)),
             'bits_per_byte': loss / math.log(2) * stream.tokens_per_byte, 'tokens': int(tokens.sum())}
    if len(stream.sources) > 1:
        scores |= {f'loss/{name}': nll[i] / max(tokens[i], 1) for i, name in enumerate(stream.sources)}
    return {name: value if isinstance(value, int) else float(value) for name, value in scores.items()}


def sums(model, sources, params, batch):
    """Returns [sources 2]: the sum of losses in nats, and of weights, of the rows of each source."""
    nll, *_ = model.token_losses(params, batch)
    rows = jnp.stack([jnp.sum(nll * batch['weights'], -1), jnp.sum(batch['weights'], -1)], -1)
    return sharding.constrain(jax.ops.segment_sum(rows, batch['source'], sources), None, None)


_sums = jax.jit(sums, static_argnums=(0, 1))
