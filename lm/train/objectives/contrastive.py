"""Contrastive learning of vectors of texts (SimCSE, Gao et al. 2021, arXiv:2104.08821)."""
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from lm import config, evaluate, trees
from lm.models import Encoder
from lm.nn import losses
from lm.parallel import reductions
from lm.train.objectives.objective import Objective


@dataclass(frozen=True)
class Contrastive(Objective):
    """Cross entropy of finding a text, read under other dropout, among all texts of the batch.

    Scores are cosines of the model's vectors over `temperature`. A row is a text; of a row of several its first. The
    others are those of the whole batch on any mesh, but of one micro-batch where gradients are accumulated: that is no
    longer the loss of the whole batch. Without dropout, as in validation, what is left is how far texts are apart.
    """

    temperature: config.Positive = 0.05

    def check(self, model):
        if not isinstance(model, Encoder):
            raise config.Error(f'{type(model).__name__} has no vector for a text; try an Encoder.')
        rates = [model.embedding.dropout, *(layer.dropout for layer in model.layers)]
        if all(map(trees.statically_zero, rates)):
            raise config.Error('a text is read twice the same without dropout; try model.layer.dropout=0.1.')

    def _vectors(self, model, params, batch, key):
        """Returns (vectors [B D] of length 1, Auxiliary)."""
        states = model.states(params, batch, key)
        vectors = model.vectors(params, states)
        return vectors / jnp.maximum(jnp.linalg.norm(vectors, axis=-1, keepdims=True), 1e-9), states.auxiliary

    def _compare(self, model, params, batch, key=None):
        """Returns (loss, whether the text is found, whether there is one), [B] each, and the Auxiliary of a pass."""
        batch = {**batch, 'inputs': batch['targets']}
        if 'weights' in batch and 'segments' not in batch:
            batch['segments'] = (batch['weights'] > 0).astype(jnp.int32)
        present = jnp.any(batch['segments'] == 1, -1) if 'segments' in batch else jnp.ones(len(batch['inputs']), bool)
        keys = (None,) * 2 if key is None else jax.random.split(key)
        (one, auxiliary), (two, _) = (self._vectors(model, params, batch, key) for key in keys)
        scores = jnp.einsum('BD,AD->BA', one, reductions.gather_rows(two)) / self.temperature
        scores = jnp.where(reductions.gather_rows(present), scores, losses.PADDING)
        own = reductions.global_row_offset(len(one)) + jnp.arange(len(one))
        nll, _ = losses.cross_entropy(scores, own, scores.shape[-1])
        return nll, jnp.argmax(scores, -1) == own, present.astype(jnp.float32), auxiliary

    def loss(self, model, params, batch, key=None):
        nll, right, present, auxiliary = self._compare(model, params, batch, key)
        count = reductions.pmean_data(jnp.sum(present))
        loss, accuracy = (losses.masked_mean(values, present, count) for values in (nll, right))
        return loss + auxiliary.loss, {'loss': loss, 'weight': count, 'accuracy': accuracy, **auxiliary.metrics}

    def sums(self, model, sources, params, batch, key):
        """Returns [sources 2]: the sum of losses, and of texts."""
        nll, _, present, _ = self._compare(model, params, batch)
        return evaluate.by_source([nll * present, present], batch['source'], sources)

    def scores(self, sums, stream):
        nll, texts = sums.sum(0)
        return {'loss': float(nll / max(texts, 1)), 'texts': int(texts)}
