"""Objectives: what loss a run minimises, and what it scores and shows at the end."""
import abc
import sys
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp

from lm import config, evaluate, generate
from lm.models import ngram
from lm.nn import losses
from lm.parallel import processes, reductions


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
    def sums(self, model, sources, params, batch):
        """Returns sums over the rows of a validation batch, an array that adds up over batches; pure."""

    @abc.abstractmethod
    def scores(self, sums, stream):
        """Returns {'loss': number, ...} of `sums` added up over the batches of a stream."""

    def score(self, model, params, stream, mesh, batches=0):
        """Returns the `scores` of a validation stream on a mesh, of all its batches or the first so many."""
        sums = partial(_sums, self, model, len(stream.sources), params)
        return self.scores(evaluate.total(sums, stream, mesh, batches), stream)

    def check(self, model):  # noqa: B027
        """Raises config.Error where a model cannot be trained for it."""

    def summary(self, scores, data):
        """Returns the lines that tell the last scores of a run on `data`."""
        return ['validation ' + ', '.join(f'{name} {value:.4g}' for name, value in scores.items())]

    def show(self, model, params, encoder, prefix):
        """Returns a text that shows what the model does, '' for none; `prefix` are the ids before a document."""
        return ''


@partial(jax.jit, static_argnums=(0, 1, 2))
def _sums(objective, model, sources, params, batch):
    return objective.sums(model, sources, params, batch)


@dataclass(frozen=True)
class NextToken(Objective):
    """Cross entropy of the next token.

    z_loss: coefficient of log(Z)^2, which keeps logits from drifting (Chowdhery et al. 2022). smoothing: share of the
    target that is spread over the vocabulary (Szegedy et al. 2016). sample: prompt of the text shown at the end, '' for
    the beginning of a document. baselines: whether compressors are measured on the held-out text at the end.
    """

    z_loss: config.NonNegative = 0.0
    smoothing: config.Fraction = 0.0
    sample: str = ''
    baselines: bool = False

    def check(self, model):
        if not model.causal:
            raise config.Error('attention with causal=false sees the token that it predicts; '
                               'try model.layer.attention.causal=true, or another objective.')

    def loss(self, model, params, batch, key=None):
        nll, log_z, auxiliary = model.token_losses(params, batch, key, self.smoothing)
        weights = batch['weights'] if 'weights' in batch else jnp.ones_like(nll)
        weight = jnp.sum(weights)
        if auxiliary.metrics:  # those are means: every shard of `data` must count by the same weight
            weight = reductions.pmean_data(weight)
        loss = losses.masked_mean(nll, weights, weight)
        total = loss + self.z_loss * losses.masked_mean(jnp.square(log_z), weights, weight) if self.z_loss else loss
        return total + auxiliary.loss, {'loss': loss, 'weight': weight, **auxiliary.metrics}

    def sums(self, model, sources, params, batch):
        return evaluate.sums(model, sources, params, batch)

    def scores(self, sums, stream):
        return evaluate.scores(sums, stream)

    def summary(self, scores, data):
        rows = {'this model': scores['bits_per_byte']} if 'bits_per_byte' in scores else {}
        if self.baselines:
            rows |= processes.decide(partial(_baselines, data))
        lossy = [] if 'bits_per_byte' in scores else ['      no bits per byte  this model: its tokenizer is lossy']
        return [f'validation loss {scores["loss"]:.4f}, perplexity {scores["perplexity"]:.2f}', *lossy,
                *(f'  {value:6.3f} bits per byte  {name}' for name, value in rows.items())]

    def show(self, model, params, encoder, prefix):
        prompt = self.sample or generate.opening(prefix)
        *_, (sample,) = generate.generate(model, params, encoder, [prompt], prefix=prefix,
                                          sampler=generate.Sampler(temperature=0.8))
        return prompt + sample.text


def _baselines(data):
    """Returns {name: bits per byte} of compressors on the held-out text; warns in one line where they fail."""
    try:
        train, valid = ([document.text.encode() for document in source.documents()]
                        for source in (data.train, data.valid))
        return ngram.bits_per_byte(train, valid)
    except Exception as error:
        print(f'lm: the run is finished, without its baselines: {config.first_line(error)}', file=sys.stderr)
        return {}
