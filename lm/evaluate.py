"""How well a model predicts text: loss, perplexity, bits per byte, by source."""
import math

import jax
import jax.numpy as jnp
import numpy as np

from lm.parallel import sharding


def total(sums, stream, mesh, batches=0):
    """Returns the arrays sums(batch, its number) of a stream's batches added up in float64; `batches` bounds how many,
    0 for all.
    """
    count = min(batches, stream.batches) if batches else stream.batches
    with jax.set_mesh(mesh):
        rows = sharding.rows(stream.batch, mesh)
        parts = []
        for i in range(count):
            batch = sharding.put(stream.batch_at(i, rows), mesh, stream.batch)
            jax.block_until_ready(parts[-1:])  # on CPU, hosts would run batches at once in another order, and lock
            parts.append(sums(batch, i))
    return jax.tree.map(lambda *arrays: np.sum(arrays, axis=0, dtype=np.float64), *jax.device_get(parts))


def scores(sums, stream):
    """Returns {'loss' in nats a token, 'perplexity', 'bits_per_byte', 'tokens', 'loss/<source>' where there are more}.

    sums: [sources 2], losses and weights added up over the batches of a Pass. A source of which no row was read has no
    loss. Bits per byte are those of all text of the sources read, end tokens included, over its bytes, so that
    tokenizers, packings and strides compare: a token that nothing stands before costs log2 of the vocabulary, and those
    of batches that were left out cost the mean of those read. There are none where stream.lost says why.
    """
    nll, tokens = sums.T
    loss = nll.sum() / max(tokens.sum(), 1)
    scores = {'loss': loss, 'perplexity': math.exp(min(loss, 700))}
    read = np.flatnonzero(tokens)
    means = dict(zip(read, nll[read] / tokens[read], strict=True))
    if not stream.lost and means:
        texts = {i: stream.texts[i] for i in read}
        nats = sum(means[i] * text.predicted + math.log(stream.encoder.size) * text.unpredicted
                   for i, text in texts.items())
        scores['bits_per_byte'] = nats / math.log(2) / sum(text.bytes for text in texts.values())
    scores['tokens'] = int(tokens.sum())
    if len(stream.sources) > 1:
        scores |= {f'loss/{stream.sources[i]}': mean for i, mean in means.items()}
    return {name: value if isinstance(value, int) else float(value) for name, value in scores.items()}


def sums(model, sources, params, batch):
    """Returns [sources 2]: the weighted sum of losses in nats, and that of counts (weights), of each source's rows."""
    nll, *_ = model.token_losses(params, batch)
    counts = batch.get('counts', batch['weights'])
    columns = [jnp.sum(nll * batch['weights'], -1), jnp.sum(counts, -1)]
    return by_source(columns, batch['source'], sources)


def by_source(columns, source, sources):
    """Returns [sources columns]: the sums of numbers of rows, each [B], over the rows of each source [B]."""
    return sharding.constrain(jax.ops.segment_sum(jnp.stack(columns, -1), source, sources), None, None)

