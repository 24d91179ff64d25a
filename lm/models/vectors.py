"""Vectors of texts, from an encoder or from those of words."""
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from lm import config
from lm.models.encoder import Encoder
from lm.models.word_vectors import WordVectors

LENGTH = 512  # the most tokens of a text where the model sets no limit


def vectors(model, params, encoder, texts, rows=32):
    """Returns the vectors of texts as numpy [N D], float32 of length 1: cosines are products of two.

    Each is read by itself, as its tokenizer begins and ends one, and cut to what the model takes. `rows` at a time are
    padded to a power of two of tokens, of which the others see none. WordVectors give the mean of a text's words.
    Raises config.Error where the model or a text has no vector.
    """
    if not isinstance(model, Encoder | WordVectors):
        raise config.Error(f'{type(model).__name__} has no vector for a text; try a run of an Encoder.')
    read = encoder.encode if isinstance(model, WordVectors) else encoder.whole
    ids = [_cut(read(text), model.limit or LENGTH) for text in texts]
    if not all(map(len, ids)):
        raise config.Error('a text is empty and its tokenizer puts no tokens around it: it has no vector; leave it.')
    if isinstance(model, WordVectors):
        table = np.asarray(model.vectors(params), np.float32)
        means = np.array([table[text].mean(0) for text in ids]).reshape(-1, table.shape[1])
        return means / np.maximum(np.linalg.norm(means, axis=-1, keepdims=True), 1e-9)
    order, parts = sorted(range(len(ids)), key=lambda number: len(ids[number])), []
    for start in range(0, len(ids), rows):
        some = [ids[number] for number in order[start:start + rows]]
        size = min(2 ** max(len(some[-1]) - 1, 1).bit_length(), model.limit or LENGTH)
        tokens, segments = np.zeros((2, rows, size), np.int32)
        for row, text in enumerate(some):
            tokens[row, :len(text)], segments[row, :len(text)] = text, 1
        parts.append(np.asarray(_vectors(model, params, tokens, segments))[:len(some)])
    return np.concatenate(parts)[np.argsort(order)] if parts else np.zeros((0, model.width), np.float32)


def _cut(ids, length):
    """Returns at most `length` of ids, the last one among them, which may end a text."""
    return ids if len(ids) <= length else np.concatenate([ids[:length - 1], ids[-1:]])


@partial(jax.jit, static_argnums=0)
def _vectors(model, params, tokens, segments):
    pooled = model.vectors(params, model.states(params, {'inputs': tokens, 'segments': segments}))
    return pooled / jnp.maximum(jnp.linalg.norm(pooled, axis=-1, keepdims=True), 1e-9)
