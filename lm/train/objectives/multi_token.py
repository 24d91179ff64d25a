"""Cross entropy of the next token and of those behind it (Gloeckle et al. 2024; DeepSeek-V3, arXiv:2412.19437)."""
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from lm import config, evaluate
from lm.models import Auxiliary
from lm.models.multi_token import MultiTokenDecoder
from lm.parallel import reductions
from lm.train.objectives.next_token import NextToken


@dataclass(frozen=True)
class MultiToken(NextToken):
    """NextToken, and `weight` times the mean of the cross entropies of the tokens behind, of a MultiTokenDecoder.

    The loss and the scores of a run are those of the next token; 'loss_2', 'loss_3', ... are those of the second, third
    ... next. In training those count by all tokens, so that micro-batches add up: a row's last have no later ones.
    """

    weight: config.NonNegative = 0.3

    def check(self, model):
        super().check(model)
        if not isinstance(model, MultiTokenDecoder):
            raise config.Error(f'{type(model).__name__} predicts the next token alone; try model=MultiTokenDecoder, or '
                               'objective=NextToken.')

    def prepare(self, model, batch, key):
        """Returns the batch with the tokens behind its targets, 'later' [B T K], and what they count [B T K].

        Of targets [1 2 3] they are [[2 3] [3 0] [0 0]] for K = 2. Those of other segments count nothing.
        """
        targets = batch['targets']
        weights, segments = (batch.get(name, jnp.ones(targets.shape, jnp.int32)) for name in ('weights', 'segments'))
        count = jnp.arange(targets.shape[1])[None]

        def behind(number):
            token, weight, segment, place = (jnp.roll(x, -number, 1) for x in (targets, weights, segments, count))
            own = (place >= number) & (segment == segments)
            return jnp.where(own, token, 0), weight * own
        later, counts = (jnp.stack(parts, -1) for parts in
                         zip(*(behind(number) for number in range(1, model.ahead + 1)), strict=True))
        return {**batch, 'later': later, 'later_weights': counts}

    def token_losses(self, model, params, batch, key=None):
        nll, log_z, auxiliary, (later, later_z, counts) = self._losses(model, params, batch, key, self.smoothing)
        count = reductions.pmean_data(jnp.sum(batch['weights']) if 'weights' in batch else nll.size * 1.0)
        means = jnp.sum(later * counts, (0, 1)) / jnp.maximum(count, 1e-9)
        squares = jnp.sum(jnp.square(later_z) * counts, (0, 1)) / jnp.maximum(count, 1e-9) if self.z_loss else 0.0
        names = {f'loss_{number}': mean for number, mean in enumerate(means, 2)}
        return nll, log_z, Auxiliary(auxiliary.loss + self.weight * jnp.mean(means + self.z_loss * squares),
                                     {**auxiliary.metrics, **names})

    def _losses(self, model, params, batch, key=None, smoothing=0.0):
        """Returns (nll, log_z, Auxiliary, (nll, log_z, weights) [B T K] of later tokens) of a prepared batch."""
        keys = (None,) * 2 if key is None else jax.random.split(key)
        states = model.states(params, batch, keys[0])
        *later, measured = model.later_losses(params, states, keys[1], smoothing)
        loss = states.auxiliary.loss + sum(part.get('loss', 0.0) for part in measured)
        metrics = states.auxiliary.metrics
        if 'load' in metrics:  # of the router's bias, see MultiTokenDecoder.post_update
            loads = [metrics['load'], *(part['load'][None] for part in measured if 'load' in part)]
            metrics = {**metrics, 'load': jnp.concatenate(loads)}
        return (*model.target_losses(params, states, smoothing), Auxiliary(loss, metrics),
                (*later, batch['later_weights']))

    def sums(self, model, sources, params, batch, key):
        """Returns [sources 2 + 2 K]: losses and weights of the next token, and of each one behind it."""
        batch = self.prepare(model, batch, key)
        nll, _, _, (later, _, counts) = self._losses(model, params, batch)
        pairs = [(nll, batch['weights']), *zip(jnp.moveaxis(later, -1, 0), jnp.moveaxis(counts, -1, 0), strict=True)]
        columns = [jnp.sum(part, -1) for values, weights in pairs for part in (values * weights, weights)]
        return evaluate.by_source(columns, batch['source'], sources)

    def scores(self, sums, stream):
        totals = sums.sum(0)
        later = totals[2::2] / np.maximum(totals[3::2], 1)
        return super().scores(sums[:, :2], stream) | {f'loss_{number}': float(loss)
                                                      for number, loss in enumerate(later, 2)}
