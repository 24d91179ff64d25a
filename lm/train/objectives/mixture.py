"""A mixture of objectives, such as the denoisers of UL2 (Tay et al. 2022, arXiv:2205.05131)."""
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from lm import config
from lm.config.overrides import with_traced_fields
from lm.train.objectives.objective import Objective


@dataclass(frozen=True)
class Mixture(Objective):
    """One of several objectives at every step, drawn with probabilities in proportion to `weights`, () for equal ones.

    UL2's denoisers are SpanCorruption(rate, span) of (0.15, 3), (0.15, 8), (0.5, 3), (0.5, 8), (0.15, 64), (0.5, 64),
    and a PrefixLM; it draws one for each example and tells the model which kind, which this does not. A step has the
    metrics that all of them have.
    """

    objectives: tuple[Objective, ...]
    weights: tuple[float, ...] = ()

    def __post_init__(self):
        super().__post_init__()
        if len(self.weights) not in (0, len(self.objectives)) or min(self.weights, default=len(self.objectives)) <= 0:
            raise config.Error(f'weights={self.weights} of {len(self.objectives)} objectives; '
                               'give each a positive number, or none to all.')

    def check(self, model):
        for objective in self.objectives:
            objective.check(model)

    def reserved(self, model):
        return sorted({token for objective in self.objectives for token in objective.reserved(model)})

    def at(self, step):
        return with_traced_fields(self, {'objectives': tuple(one.at(step) for one in self.objectives)})

    def loss(self, model, params, batch, key=None):
        weights = jnp.log(jnp.array(self._shares))
        chosen = 0 if key is None else jax.random.categorical(jax.random.fold_in(key, 2), weights)
        losses = [partial(one.loss, model) for one in self.objectives]
        shared = set.intersection(*(set(jax.eval_shape(loss, params, batch, key)[1]) for loss in losses))

        def of(loss, *args):
            total, metrics = loss(*args)
            return total, {name: metrics[name] for name in sorted(shared)}
        return jax.lax.switch(chosen, [partial(of, loss) for loss in losses], params, batch, key)

    @property
    def _shares(self):
        return self.weights or (1.0,) * len(self.objectives)

    def sums(self, model, sources, params, batch, key):
        return tuple(one.sums(model, sources, params, batch, key) for one in self.objectives)

    def scores(self, sums, stream):
        """Returns the mean of the losses by `weights`, and each by the number and name of its objective."""
        losses = [one.scores(part, stream)['loss'] for one, part in zip(self.objectives, sums, strict=True)]
        names = [f'loss/{number}-{type(one).__name__}' for number, one in enumerate(self.objectives)]
        return {'loss': float(np.average(losses, weights=self._shares)), **dict(zip(names, losses, strict=True))}
