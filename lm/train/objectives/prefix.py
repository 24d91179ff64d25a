"""Prefix language modelling (Raffel et al. 2019, arXiv:1910.10683, section 3.2.1; the S-denoiser of UL2)."""
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from lm import config
from lm.train.objectives.objective import TokenObjective, row_keys


@dataclass(frozen=True)
class PrefixLM(TokenObjective):
    """Cross entropy of the rest of each document, given its first tokens, which see each other in both directions.

    How many tokens those are is drawn evenly, one at least. An EncoderDecoder reads them with its encoder.
    """

    def check(self, model):
        if not model.causal:
            raise config.Error('behind the prefix no token sees a later one; try model.layer.attention.causal=true.')
        if model.continues and model.prompt != 'bidirectional':
            raise config.Error('PrefixLM trains for prompts that see themselves in both directions; '
                               'set model.prompt=bidirectional.')

    def prepare(self, model, batch, key):
        tokens = batch['inputs']
        segments = batch.get('segments', jnp.ones_like(tokens))
        positions = batch.get('positions', jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape))
        share, length = jax.vmap(_by_document)(row_keys(key, len(tokens)), segments)
        size = 1 + (share * jnp.maximum(length - 1, 1)).astype(jnp.int32)
        later = (positions >= size - 1) & (segments > 0)
        batch = {**batch, 'weights': later * batch.get('weights', 1.0)}
        prefix = positions < size
        if model.continues:
            return {**batch, 'prefix': prefix & (segments > 0)}
        return {**batch, 'encoder_inputs': tokens, 'encoder_segments': jnp.where(prefix, segments, 0),
                'encoder_positions': positions, 'inputs': jnp.where(positions == size - 1, model.start, tokens),
                'segments': jnp.where(later, segments, 0), 'positions': jnp.maximum(positions - size + 1, 0)}


def _by_document(key, segments):
    """Returns (a number in [0, 1), how many tokens it has) of the document of each token of a row, both [T]."""
    size = len(segments) + 1
    return jax.random.uniform(key, (size,))[segments], jnp.bincount(segments, length=size)[segments]
