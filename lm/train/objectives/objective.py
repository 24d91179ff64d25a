"""The base classes of objectives: of any kind, and those that are a cross entropy of tokens."""
import abc
from dataclasses import KW_ONLY, dataclass
from functools import partial

import jax
import jax.numpy as jnp

from lm import config, evaluate
from lm.nn import losses
from lm.parallel import reductions


@dataclass(frozen=True)
class Objective(abc.ABC):
    """What a model is trained for. Models and batches of any kind: the methods alone know what is in them."""

    def __post_init__(self):
        config.check(self)

    @abc.abstractmethod
    def loss(self, model, params, batch, key=None):
        """Returns (loss, metrics), pure: what the gradient is taken of, a mean over metrics['weight'] tokens.

        metrics: scalars by name, among them 'loss', that of the data alone, without what regularises. Randomness, such
        as dropout, is drawn from key; without one there is none.
        """

    @abc.abstractmethod
    def sums(self, model, sources, params, batch, key):
        """Returns sums over the rows of a validation batch, arrays that add up over batches; pure.

        Noise, such as masks, is drawn from key, another one for each batch; there is no dropout.
        """

    @abc.abstractmethod
    def scores(self, sums, stream):
        """Returns {'loss': number, ...} of `sums` added up over the batches of a stream."""

    def score(self, model, params, stream, mesh, batches=0):
        """Returns the `scores` of a validation stream on a mesh, of all its batches or the first so many."""
        def sums(batch, number):
            return _sums(self, model, len(stream.sources), params, batch, number=number)
        return self.scores(evaluate.total(sums, stream, mesh, batches), stream)

    def check(self, model):  # noqa: B027
        """Raises config.Error where a model cannot be trained for it."""

    def at(self, step):
        """Returns the objective at a step (traced, from 0), for one that changes as a run goes on."""
        return self

    def reserved(self, model):
        """Returns the token ids that it puts into inputs itself, which a tokenizer may make of no text."""
        return ()

    def summary(self, scores, data):
        """Returns the lines that tell the last scores of a run on `data`."""
        return ['validation ' + ', '.join(f'{name} {value:.4g}' for name, value in scores.items())]

    def show(self, model, params, encoder, prefix):
        """Returns a text that shows what the model does, '' for none; `prefix` are the ids before a document."""
        return ''


def validation_key(number):
    """Returns the key of validation batch `number`: the same in every validation, so that they compare."""
    return jax.random.fold_in(jax.random.key(0), number)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _sums(objective, model, sources, params, batch, *, number):
    return objective.sums(model, sources, params, batch, validation_key(number))


@dataclass(frozen=True)
class TokenObjective(Objective):
    """Cross entropy of the tokens that `prepare` asks for.

    z_loss: coefficient of log(Z)^2, which keeps logits from drifting (Chowdhery et al. 2022). smoothing: share of the
    target that is spread over the vocabulary (Szegedy et al. 2016).
    """

    _: KW_ONLY
    z_loss: config.NonNegative = 0.0
    smoothing: config.Fraction = 0.0

    @abc.abstractmethod
    def prepare(self, model, batch, key):
        """Returns the batch that the model is given: its inputs, its targets [B T] and how much they count, 'weights'.

        The loss is the weighted sum over the sum of 'counts' [B T], by default the weights. Pure; what is drawn, is
        drawn from key, by rows (`row_keys`).
        """

    def loss(self, model, params, batch, key=None):
        noise = jax.random.key(0) if key is None else jax.random.fold_in(key, 1)
        batch = self.prepare(model, batch, noise)
        nll, log_z, auxiliary = self.token_losses(model, params, batch, key)
        weights = batch['weights'] if 'weights' in batch else jnp.ones_like(nll)
        weight = jnp.sum(batch.get('counts', weights))
        if auxiliary.metrics:  # those are means: every shard of `data` must count by the same weight
            weight = reductions.pmean_data(weight)
        loss = losses.masked_mean(nll, weights, weight)
        total = loss + self.z_loss * losses.masked_mean(jnp.square(log_z), weights, weight) if self.z_loss else loss
        return total + auxiliary.loss, {'loss': loss, 'weight': weight, **auxiliary.metrics}

    def token_losses(self, model, params, batch, key=None):
        """Returns (nll, log_z, Auxiliary) of a prepared batch, [B T] each: what the loss is a mean of."""
        return model.token_losses(params, batch, key, self.smoothing)

    def sums(self, model, sources, params, batch, key):
        return evaluate.sums(model, sources, params, self.prepare(model, batch, key))

    def scores(self, sums, stream):
        """Returns what evaluate.scores does, but for bits per byte, which only the likelihood of all tokens gives."""
        scores = evaluate.scores(sums, stream)
        return {name: value for name, value in scores.items() if name != 'bits_per_byte'}


def row_keys(key, count):
    """Returns a key for each of `count` rows [B] of a batch, by their numbers in the whole batch: the same on any mesh
    and in any micro-batch.
    """
    return jax.vmap(lambda row: jax.random.fold_in(key, row))(reductions.row_numbers(count))
