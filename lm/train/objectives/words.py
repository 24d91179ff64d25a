"""Objectives of word vectors: skip-gram, the continuous bag of words, and GloVe."""
import abc
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from lm import config
from lm.models.word_vectors import WordVectors
from lm.nn.embedding import look_up
from lm.parallel import sharding
from lm.tasks import word_similarity
from lm.train.objectives.objective import Objective, row_keys


@dataclass(frozen=True)
class WordObjective(Objective):
    """What word vectors are trained for: the base of the three.

    similarity, analogies: files under $LM_DATA that the vectors are scored on, see tasks.word_similarity, () and '' for
    none. sample: words whose nearest ones are shown at the end, between spaces, '' for the first of the vocabulary.
    """

    similarity: tuple[str, ...] = ()
    analogies: str = ''
    sample: str = ''

    def check(self, model):
        if not isinstance(model, WordVectors):
            raise config.Error(f'{type(self).__name__} trains word vectors, not a {type(model).__name__}; '
                               'try model=WordVectors, or another objective.')

    @abc.abstractmethod
    def terms(self, model, params, batch, key=None):
        """Returns [B 2], the sums over each row of the losses in nats and of what they weigh."""

    def loss(self, model, params, batch, key=None):
        total, weight = jnp.sum(self.terms(model, params, batch, key), axis=0)
        loss = total / jnp.maximum(weight, 1e-9)
        return loss, {'loss': loss, 'weight': weight}

    def sums(self, model, sources, params, batch, key):
        rows = jax.ops.segment_sum(self.terms(model, params, batch), batch['source'], sources)
        return sharding.constrain(rows, None, None)

    def scores(self, sums, stream):
        total, weight = sums.sum(0)
        return {'loss': float(total / max(weight, 1e-9))}

    def score(self, model, params, stream, mesh, batches=0):
        """Returns the scores of a stream, and those of the vectors on the sets."""
        scores = super().score(model, params, stream, mesh, batches)
        if not (self.similarity or self.analogies):
            return scores
        with jax.set_mesh(mesh):
            vectors = np.asarray(_vectors(model, params))
        return scores | word_similarity.scores(names(stream.encoder), vectors, self.similarity, self.analogies)

    def show(self, model, params, encoder, prefix):
        words = names(encoder)
        chosen = self.sample.split() or words[:10]
        near = word_similarity.nearest(words, np.asarray(_vectors(model, params)), chosen)
        return '\n'.join(f'{word}: {" ".join(others)}' for word, others in near.items())


@partial(jax.jit, static_argnums=0)
def _vectors(model, params):
    return sharding.constrain(model.vectors(params), None, None)


def names(encoder):
    """Returns the text of each token of an encoder, <number> for one that is no word."""
    texts = [encoder.decode([number]) for number in range(encoder.size)]
    return [text if text and not any(letter.isspace() for letter in text) else f'<{number}>'
            for number, text in enumerate(texts)]


@dataclass(frozen=True)
class NoiseContrast(WordObjective):
    """Words told from noise by their neighbours: the base of SkipGram and BagOfWords (Mikolov et al. 2013,
    arXiv:1310.4546).

    window: the most words on either side; a word looks at 1 to so many, all equally likely. negatives: noise words for
    each true one, drawn by frequency to the `power`. subsample: a word of frequency f is left out with probability
    1 - sqrt(subsample / f) - subsample / f, as word2vec's program has it, and the others move together; 0 for none.
    Without a key losses are those expected, at the places that words have.

    The noise of a row are the contexts of the next one, of its device and micro-batch, by weights that make them such a
    draw: so that a step looks up two vectors a token and multiplies matrices. It wants data.packing=counted.
    """

    window: config.Size = 5
    negatives: config.Positive = 5.0
    power: config.NonNegative = 0.75
    subsample: config.NonNegative = 1e-3

    def neighbours(self, batch, key):
        """Returns (kept [B T], pairs [B T S]): which words are used, and which word S stands in the window of word T.
        """
        weights = batch['weights'] if 'weights' in batch else jnp.ones(batch['targets'].shape)
        kept, places = weights, jnp.broadcast_to(jnp.arange(weights.shape[1]), weights.shape)
        if self.subsample:
            rate = self.subsample / jnp.maximum(batch['frequency'], 1e-20)
            kept = weights * jnp.minimum(jnp.sqrt(rate) + rate, 1)
        if key is not None:
            keys, size = jax.vmap(jax.random.split)(row_keys(key, len(kept))), kept.shape[1]
            chance = jax.vmap(lambda key: jax.random.uniform(key, size))(keys[:, 0])
            windows = jax.vmap(lambda key: jax.random.randint(key, size, 1, self.window + 1))(keys[:, 1])
            kept = (chance < kept).astype(jnp.float32)
            places = jnp.cumsum(kept, axis=1)
        distance = jnp.abs(places[:, :, None] - places[:, None, :])
        if key is None:
            near = jnp.maximum(self.window + 1 - distance, 0) / self.window
        else:
            near = distance <= windows[:, :, None]
        return kept, kept[:, :, None] * kept[:, None, :] * near * (distance > 0)

    def noise(self, batch):
        """Returns [B S], how much each context of the next row counts as noise of one true pair."""
        if 'frequency' not in batch:
            raise config.Error(f'{type(self).__name__} goes by the frequency of words, which these rows lack; '
                               'try data.packing=counted, and no stride.')
        weights = batch.get('weights', 1) * jnp.maximum(batch['frequency'], 1e-20) ** (self.power - 1)
        total = jnp.maximum(jnp.sum(weights, axis=1, keepdims=True), 1e-9)
        return self.negatives * jnp.roll(weights / total, 1, axis=0)

    def mistaken(self, inputs, contexts, noise):
        """Returns [B T], the losses of inputs [B T D] that take `noise` [B S], contexts of the next row, for true."""
        scores = jnp.einsum('BTD,BSD->BTS', inputs, jnp.roll(contexts, 1, axis=0))
        return jnp.einsum('BTS,BS->BT', jax.nn.softplus(scores), noise)


@dataclass(frozen=True)
class SkipGram(NoiseContrast):
    """A word tells its neighbours, one at a time, from noise."""

    def terms(self, model, params, batch, key=None):
        noise, (_, pairs) = self.noise(batch), self.neighbours(batch, key)
        words, contexts = (look_up(params[name], batch['targets']) for name in ('words', 'contexts'))
        scores, counts = jnp.einsum('BTD,BSD->BTS', words, contexts), jnp.sum(pairs, axis=2)
        losses = jnp.sum(jax.nn.softplus(-scores) * pairs, axis=2) + counts * self.mistaken(words, contexts, noise)
        return jnp.stack([jnp.sum(losses, axis=1), jnp.sum(counts, axis=1)], axis=-1)


@dataclass(frozen=True)
class BagOfWords(NoiseContrast):
    """The mean of its neighbours tells a word from noise (CBOW)."""

    def terms(self, model, params, batch, key=None):
        noise, (kept, pairs) = self.noise(batch), self.neighbours(batch, key)
        words, contexts = (look_up(params[name], batch['targets']) for name in ('words', 'contexts'))
        total = jnp.sum(pairs, axis=2, keepdims=True)
        means = jnp.einsum('BTS,BSD->BTD', pairs, words) / jnp.maximum(total, 1e-9)
        true = jax.nn.softplus(-jnp.einsum('BTD,BTD->BT', means, contexts))
        counts = kept * (total[..., 0] > 0)
        losses = counts * (true + self.mistaken(means, contexts, noise))
        return jnp.stack([jnp.sum(losses, axis=1), jnp.sum(counts, axis=1)], axis=-1)


@dataclass(frozen=True)
class Glove(WordObjective):
    """Weighted squares of how far products of vectors are from the logarithms of counts (Pennington et al. 2014).

    A pair that is counted x times weighs (x / most) ** power, at most 1. It wants data.packing=cooccurrences and
    model.bias=true.
    """

    most: config.Positive = 100.0
    power: config.NonNegative = 0.75

    def check(self, model):
        super().check(model)
        if not model.bias:
            raise config.Error('Glove adds a number for each word to its products; try model.bias=true.')

    def terms(self, model, params, batch, key=None):
        if 'counts' not in batch:
            raise config.Error('Glove learns from counts of pairs, which these rows lack; '
                               'try data.packing=cooccurrences.')
        counts = batch['counts']
        words, contexts, *biases = (look_up(params[name], batch[side]) for name, side in (
            ('words', 'inputs'), ('contexts', 'targets'), ('word_bias', 'inputs'), ('context_bias', 'targets')))
        missed = jnp.einsum('BTD,BTD->BT', words, contexts) + sum(biases)[..., 0] - jnp.log(counts)
        present = batch['weights'] if 'weights' in batch else jnp.ones_like(counts)
        losses = present * jnp.minimum((counts / self.most) ** self.power, 1) * jnp.square(missed)
        return jnp.stack([jnp.sum(losses, axis=1), jnp.sum(present, axis=1)], axis=-1)
