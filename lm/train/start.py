"""Starts: the parameters that a run begins with, and which of them learn."""
from dataclasses import dataclass
from typing import ClassVar

import jax

from lm import config, trees
from lm.parallel import sharding


@dataclass(frozen=True)
class Start:
    """Where parameters come from at step 0; a resumed run restores its own checkpoint and asks its start no more.

    frozen: regex of the parameters that never learn, beside those that the optimizer freezes; '' for none.
    """

    frozen: ClassVar[str] = ''

    def shapes(self, model):
        """Returns the abstract tree of `params`; reads nothing."""
        return jax.eval_shape(model.init, jax.random.key(0))

    def params(self, model, key, mesh=None):
        """Returns the parameters, drawn from key or read, spread over `mesh`; pure for a `mesh` of None, inside jit."""
        if mesh is None:
            return model.init(key)
        places = sharding.mirror(self.shapes(model), model.axes(), mesh)
        return jax.jit(model.init, out_shardings=places)(key)


@dataclass(frozen=True)
class Fresh(Start):
    """Initial values of the model's own."""


@dataclass(frozen=True)
class From(Start):
    """The parameters of another run's checkpoint, averaged ones where its optimizer keeps an average.

    run: its directory. where: regex of the parameters that are taken, '' for all; the others are fresh. step: of the
    checkpoint, 0 for the last step of that run, so that what is read does not depend on when. trust: whether that run's
    own code may be executed, where its model is not one of lm.
    """

    run: str
    where: str = ''
    step: int = 0
    trust: bool = False

    def __post_init__(self):
        trees.pattern(self.where)
        if self.step < 0:
            raise config.Error(f'step={self.step} is negative; try step=0 for the last step of {self.run}.')

    def params(self, model, key, mesh=None):
        from lm.train import runs  # here, as it imports orbax, which takes a second
        settings = runs.read(self.run, runs.trusted(self.run, self.trust))
        chosen = trees.mask(self.shapes(model), self.where)
        self._check(trees.flatten(trees.select(self.shapes(model), chosen)),
                    trees.flatten(settings.start.shapes(settings.model)))
        fresh = super().params(model, key, mesh)
        if mesh is None:
            with jax.ensure_compile_time_eval():  # files are read now, not when what is traced here runs
                one = sharding.make_mesh({'data': 1}, jax.devices()[:1])
                params, _ = runs.saved(settings, self.run, self.step or settings.steps, one)
                return trees.merge(fresh, jax.device_get(trees.select(params, chosen)))
        params, _ = runs.saved(settings, self.run, self.step or settings.steps, mesh)
        places = jax.tree.map(lambda x: x.sharding, trees.select(fresh, chosen))
        return trees.merge(fresh, jax.device_put(trees.select(params, chosen), places))

    def _check(self, wanted, known):
        """Raises config.Error unless all `wanted` {name: shape} are `known` there."""
        for name, x in wanted.items():
            remedy = f"try start.where='^(?!{name}$)' to leave it fresh"
            if name not in known:
                raise config.Error(f'{self.run} has no parameter {name}; {remedy}.')
            if known[name].shape != x.shape:
                raise config.Error(f'{name} is {list(known[name].shape)} in {self.run} and {list(x.shape)} here; '
                                   f'set the sizes of the model to those of that run, or {remedy}.')
