"""Replaced-token detection (ELECTRA, Clark et al. 2020, arXiv:2003.10555)."""
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from lm import config, evaluate
from lm.models.electra import Electra
from lm.nn import losses
from lm.parallel import reductions
from lm.train.objectives.masked import MaskedLM
from lm.train.objectives.objective import row_keys


@dataclass(frozen=True)
class ReplacedToken(MaskedLM):
    """MaskedLM of an Electra's generator, and `weight` times the cross entropy of which tokens its samples replaced.

    The generator's loss is its sum over hidden tokens by `rate` of all tokens, the detector's a mean over all, so that
    micro-batches add up. No gradient goes through the samples.
    """

    replaced: config.Fraction = 0.0
    kept: config.Fraction = 0.15
    weight: config.NonNegative = 50.0

    def check(self, model):
        if not isinstance(model, Electra):
            raise config.Error(f'{type(model).__name__} has no generator; try model=Electra(generator=Encoder(...), '
                               'discriminator=Encoder(..., head=Detector())).')

    def _passes(self, model, params, batch, noise, key=None):
        """Returns ((nll, log_z) of the generator [B T], (cross entropy of the detector [B T], whether it is right,
        whether a token is another), weights of hidden and of all tokens [B T], Auxiliaries of both).
        """
        keys = (None,) * 2 if key is None else jax.random.split(key)
        masked, own = self.prepare(model, batch, noise), model.of_generator(params)
        states = model.generator.states(own, masked, keys[0])
        logits = model.generator.scores(own, states)
        tokens, draws = batch['targets'], row_keys(jax.random.fold_in(noise, 2), len(batch['targets']))
        samples = jax.vmap(jax.random.categorical)(draws, jax.lax.stop_gradient(logits)).astype(tokens.dtype)
        samples = jnp.where(masked['weights'] > 0, samples, tokens)
        judged = model.discriminator.states(params['discriminator'], {**masked, 'inputs': samples}, keys[1])
        score, other = model.discriminator.scores(params['discriminator'], judged)[..., 0], samples != tokens
        binary = jax.nn.softplus(score) - other * score
        weights = masked['weights'], batch.get('weights', jnp.ones(tokens.shape))
        return (losses.cross_entropy(logits, tokens, model.vocab, self.smoothing),
                (binary, (score > 0) == other, other), weights, (states.auxiliary, judged.auxiliary))

    def loss(self, model, params, batch, key=None):
        noise = jax.random.key(0) if key is None else jax.random.fold_in(key, 1)
        (nll, log_z), (binary, right, _), (hidden, present), auxiliaries = self._passes(
            model, params, batch, noise, key)
        count = reductions.pmean_data(jnp.sum(present))

        def mean(values, weights):
            return losses.masked_mean(values, weights, count)
        generator, detector = mean(nll, hidden) / self.rate, mean(binary, present)
        loss = generator + self.weight * detector
        regular = self.z_loss * mean(jnp.square(log_z), hidden) / self.rate + sum(part.loss for part in auxiliaries)
        metrics = {name: value for part in auxiliaries for name, value in part.metrics.items()}
        return loss + regular, {'loss': loss, 'weight': count, 'generator_loss': generator, 'detector_loss': detector,
                                'detector_accuracy': mean(right, present), **metrics}

    def sums(self, model, sources, params, batch, key):
        """Returns [sources 6]: of hidden tokens losses, weights and how many were replaced by another; of all tokens
        losses of the detector, how many it judged right, and weights.
        """
        (nll, _), (binary, right, other), (hidden, present), _ = self._passes(
            model, params, batch, key)
        columns = nll * hidden, hidden, other * hidden, binary * present, right * present, present
        return evaluate.by_source([jnp.sum(column, -1) for column in columns], batch['source'], sources)

    def scores(self, sums, stream):
        _, hidden, other, binary, right, present = sums.sum(0)
        scores = super().scores(sums[:, :2], stream)
        return scores | {'loss': scores['loss'] + self.weight * float(binary / max(present, 1)),
                         'detector_accuracy': float(right / max(present, 1)),
                         'replaced': float(other / max(hidden, 1))}
