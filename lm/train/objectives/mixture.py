"""A mixture of objectives, such as the denoisers of UL2 (Tay et al. 2022, arXiv:2205.05131)."""
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from lm import config
from lm.config.overrides import with_traced_fields
from lm.train.objectives.objective import Objective


@dataclass(frozen=True)
class Mixture(Objective):
    """One of several objectives at every step, drawn with probabilities in proportion to `weights`, () for equal ones.

    UL2 is Mixture((SpanCorruption(0.15, 3.0), SpanCorruption(0.5, 8.0), PrefixLM())).
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
        weights = jnp.log(jnp.array(self.weights or (1.0,) * len(self.objectives)))
        chosen = 0 if key is None else jax.random.categorical(jax.random.fold_in(key, 2), weights)
        losses = [lambda params, batch, key, one=one: one.loss(model, params, batch, key) for one in self.objectives]
        return jax.lax.switch(chosen, losses, params, batch, key)

    def sums(self, model, sources, params, batch):
        return jnp.stack([one.sums(model, sources, params, batch) for one in self.objectives])

    def scores(self, sums, stream):
        """Returns the mean of the losses, and each by the number and name of its objective."""
        losses = [one.scores(part, stream)['loss'] for one, part in zip(self.objectives, sums, strict=True)]
        names = [f'loss/{number}-{type(one).__name__}' for number, one in enumerate(self.objectives)]
        return {'loss': sum(losses) / len(losses), **dict(zip(names, losses, strict=True))}
