"""Optimizers, one frozen dataclass each, over optax.

Every optimizer takes the same step, `-rate * multiplier * (direction + weight_decay * parameter)`, and differs from the
others in the direction alone. Weight decay is therefore decoupled everywhere and scales with the learning rate.
"""
import abc
import dataclasses
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lm import config, trees
from lm.config import FractionBelowOne, NonNegative, Positive, Size
from lm.optim import matrices, transforms
from lm.optim.schedules import Constant, Cosine, Schedule


class State(NamedTuple):
    """An optimizer's state. Trees in it mirror the parameters that train: their paths end in the same names."""

    step: jax.Array
    direction: Any
    average: Any


@dataclasses.dataclass(frozen=True)
class Optimizer(abc.ABC):
    """What all optimizers share; a new one is a subclass with a `direction`.

    `decay` and `frozen` are regexes, searched anywhere in a parameter's name. `decay` selects parameters for weight
    decay; empty means all matrices, embeddings included, but no norms or biases. `frozen` parameters do not train and
    have no state; empty means none. `rates` are pairs (regex, multiplier); a parameter's learning rate is multiplied by
    that of every regex that matches. `clip` bounds the global norm of the gradients of the parameters that train, and
    `ema` is the decay of an average of the parameters; 0 turns either off. `moments` is the storage dtype of the
    direction's state between steps: bfloat16 is rounded stochastically, so that small updates are not lost.
    """

    peak: NonNegative = 1e-3
    schedule: Schedule = dataclasses.field(default_factory=Cosine)
    weight_decay: NonNegative = 0.0
    decay: str = ''
    frozen: str = ''
    rates: tuple[tuple[str, NonNegative], ...] = ()
    clip: NonNegative = 1.0
    ema: FractionBelowOne = 0.0
    moments: Literal['float32', 'bfloat16'] = 'float32'

    def __post_init__(self):
        config.check(self)
        for regex in (self.decay, self.frozen, *(regex for regex, _ in self.rates)):
            trees.pattern(regex)

    def rate(self, steps):
        """Returns the schedule, step -> learning rate, of a run of `steps`; raises config.Error if it does not fit."""
        return self.schedule.make(self.peak, steps)

    def make(self, steps, axes=None, base_shapes=None):
        """Returns the optax.GradientTransformation of a run of `steps`; its `update` needs the parameters.

        `axes` is the tree of logical axis names of the parameters; without it a leaf with two or more axes is a matrix.
        `base_shapes` is the tree of abstract parameters of the muP base model, None where this model is its own. Both
        go by names, see `matrices.of`. `init` raises config.Error when a regex matches no parameter.
        """
        rate = self.rate(steps)
        average = self.average(rate)

        def init(params):
            plan = transforms.plan(self, params, axes, base_shapes)
            trained = trees.select(params, plan.trained)
            moments = transforms.to_storage(self.direction(plan.views).init(trained), self.moments, 0)
            return State(jnp.zeros([], jnp.int32), moments, average.init(trained))

        def update(grads, state, params):
            plan = transforms.plan(self, params, axes, base_shapes)
            trained = trees.select(params, plan.trained)
            grads = transforms.clip(trees.select(grads, plan.trained), self.clip)
            direction = self.direction(plan.views)
            directions, moments = direction.update(grads, transforms.to_float32(state.direction), trained)
            step_size = rate(state.step)

            def scaled(direction, p, decay, multiplier):
                decayed = direction if trees.statically_zero(decay) else direction + decay * p
                return -step_size * multiplier * decayed

            updates = jax.tree.map(scaled, directions, trained, plan.decays, plan.multipliers)
            updates, averages = average.update(updates, state.average, trained)
            # x + -0.0 is x bit for bit, also where x is -0.0
            still = jax.tree.map(lambda p: jnp.full_like(p, -0.0), params)
            moments = transforms.to_storage(moments, self.moments, state.step)
            return trees.merge(still, updates), State(state.step + 1, moments, averages)
        return optax.GradientTransformation(init, update)

    @abc.abstractmethod
    def direction(self, views):
        """Returns the optax transformation from gradients to directions, before learning rate and weight decay.

        `views` is the tree of MatrixViews of the parameters that train.
        """

    def multiplier(self, view):
        """Returns the multiplier of a leaf's learning rate by its MatrixView."""
        return 1.0

    def transfer(self, view):
        """Returns muP's multiplier of a leaf's learning rate, tuned on a base model of another width.

        Here 1 / fan_in, for directions whose entries have one size whatever the gradient's, as Adam's (Yang et al.
        2022, arXiv:2203.03466, table 8).
        """
        return view.width_ratio(lambda fan_in, fan_out: 1 / fan_in)

    def average(self, rate):
        """Returns the optax transformation that is applied to the updates last and keeps an average of the parameters.
        """
        return transforms.track_average(self.ema) if self.ema else optax.identity()

    def averaged(self, state, params):
        """Returns the parameters to evaluate with: their average where the optimizer keeps one, else `params`."""
        return trees.merge(params, state.average.params) if self.ema else params


@dataclasses.dataclass(frozen=True)
class SGD(Optimizer):
    """Gradient descent with momentum, in the form v = momentum v + g; with `nesterov` the step is momentum v + g."""

    peak: NonNegative = 0.1
    momentum: FractionBelowOne = 0.9
    nesterov: bool = False

    def direction(self, views):
        return optax.trace(self.momentum, self.nesterov) if self.momentum else optax.identity()

    def transfer(self, view):
        """Returns fan_out / fan_in, of the same table; `clip` disturbs it, as the gradient's norm goes with width."""
        return view.width_ratio(lambda fan_in, fan_out: fan_out / fan_in)


@dataclasses.dataclass(frozen=True)
class Adam(Optimizer):
    """Adam (Kingma and Ba 2014, arXiv:1412.6980)."""

    b1: FractionBelowOne = 0.9
    b2: FractionBelowOne = 0.999
    eps: Positive = 1e-8

    def direction(self, views):
        return optax.scale_by_adam(self.b1, self.b2, self.eps)


@dataclasses.dataclass(frozen=True)
class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2017, arXiv:1711.05101) and GPT-3's second decay rate."""

    weight_decay: NonNegative = 0.1
    b2: FractionBelowOne = 0.95


@dataclasses.dataclass(frozen=True)
class AdaGrad(Optimizer):
    """AdaGrad (Duchi et al. 2011); `initial` is the sum of squares that it begins with."""

    peak: NonNegative = 1e-2
    initial: NonNegative = 0.1
    eps: Positive = 1e-7

    def direction(self, views):
        return optax.scale_by_rss(self.initial, self.eps)

    def transfer(self, view):
        if view.shape != view.base_shape:
            raise config.Error(f'AdaGrad adds initial={self.initial} to squared gradients, which shrink with width, so '
                               'its rate carries over to no other width; try optimizer=Adam, or model.base=MupBase().')
        return 1.0


@dataclasses.dataclass(frozen=True)
class Adafactor(Optimizer):
    """Adafactor without momentum (Shazeer and Stern 2018, arXiv:1804.04235): a row and a column of state per matrix.

    `peak` is relative to the root mean square of each parameter, or to `floor` where that is less.
    """

    peak: NonNegative = 1e-2
    clip: NonNegative = 0.0
    power: Positive = 0.8
    eps: Positive = 1e-30
    floor: NonNegative = 1e-3

    def direction(self, views):
        return transforms.scale_by_factored_moments(views, self.power, self.eps, self.floor)

    def transfer(self, view):
        return super().transfer(view) / view.width_ratio(matrices.initial)


@dataclasses.dataclass(frozen=True)
class Lion(Optimizer):
    """Lion (Chen et al. 2023, arXiv:2302.06675): wants a third to a tenth of AdamW's peak and as much more decay."""

    peak: NonNegative = 1e-4
    weight_decay: NonNegative = 1.0
    b1: FractionBelowOne = 0.9
    b2: FractionBelowOne = 0.99

    def direction(self, views):
        return optax.scale_by_lion(self.b1, self.b2)


@dataclasses.dataclass(frozen=True)
class Muon(AdamW):
    """Muon (Jordan et al. 2024) for the matrices between embedding and output, AdamW for everything else.

    The momentum of each matrix, of each layer on its own, is made orthogonal by Newton-Schulz `iterations`. With `rms`
    above 0 the step's root mean square is about `rms` whatever the shape, which at 0.2 suits a peak and a weight decay
    chosen for AdamW (Liu et al. 2025, arXiv:2502.16982); at 0 it is scaled by sqrt(max(1, columns / rows)), which wants
    a peak of 0.02. `adam_rate` multiplies the rate of the parameters left to AdamW: those with an axis named 'vocab' or
    'position', and vectors. Without axes every leaf of two axes is orthogonalised and one of more is an error.
    """

    momentum: FractionBelowOne = 0.95
    iterations: Size = 5
    rms: NonNegative = 0.2
    adam_rate: NonNegative = 1.0

    def direction(self, views):
        for name, view in trees.flatten(views).items():
            if view.names is None and len(view.inner) > 1:
                raise ValueError(f'{name} has {len(view.inner) + 1} axes and Muon does not know which form its '
                                 'matrices; try make(steps, axes) with their logical names.')
        mask = jax.tree.map(self._orthogonal, views)
        orthogonal = transforms.orthogonalize(trees.select(views, mask), self.momentum, self.iterations, self.rms)
        return transforms.partition(mask, orthogonal, super().direction(views))

    def multiplier(self, view):
        return 1.0 if self._orthogonal(view) else self.adam_rate

    def transfer(self, view):
        if not self._orthogonal(view):
            return super().transfer(view)

        def law(rows, columns):
            return (columns / rows) ** 0.5 / transforms.spectral_norm(rows, columns, self.rms)
        return view.width_ratio(law)

    def _orthogonal(self, view):
        return view.matrix and not view.table


@dataclasses.dataclass(frozen=True)
class ScheduleFree(Adam):
    """Schedule-free AdamW (Defazio et al. 2024, arXiv:2405.15682): wants a warm-up and no decay of the rate.

    The loop trains y; `averaged` gives the x to evaluate.
    """

    peak: NonNegative = 2.5e-3
    schedule: Schedule = dataclasses.field(default_factory=Constant)

    def __post_init__(self):
        super().__post_init__()
        if self.ema:
            raise config.Error(f'ema={self.ema} is a second average beside that of ScheduleFree; try ema=0.0.')
        if not self.b1:
            raise config.Error('b1=0.0 leaves ScheduleFree no average to evaluate; try b1=0.9.')

    def direction(self, views):
        return optax.scale_by_rms(self.b2, self.eps, eps_in_sqrt=False, bias_correction=True)

    def average(self, rate):
        return transforms.interpolate(rate, self.b1)

    def averaged(self, state, params):
        trained = trees.restrict(params, state.average.base)
        return trees.merge(params, transforms.average_of(trained, state.average, self.b1))
