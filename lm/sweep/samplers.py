"""Samplers of a hyper-parameter search: at random, or by Optuna from the losses of earlier trials."""
import abc
import dataclasses
import importlib.util
import math
import random
import warnings
from typing import Literal, NamedTuple

from lm.config import Error, Size, check, spelled
from lm.sweep.trials import split


class Range(NamedTuple):
    """Numbers from `low` to `high`: log-uniform if both are positive, integers if both are."""

    low: float
    high: float

    @property
    def integer(self):
        return isinstance(self.low, int) and isinstance(self.high, int)

    def at(self, quantile):
        """Returns the number of four digits at a quantile in [0, 1) of the range."""
        low, high = (self.low - 0.5, self.high + 0.5) if self.integer else self
        value = low * (high / low) ** quantile if self.low > 0 else low + (high - low) * quantile
        return self.clipped(round(value) if self.integer else value)

    def clipped(self, value):
        """Returns a value rounded to four digits and clipped to the range."""
        return min(max(value if self.integer else float(f'{value:.4g}'), self.low), self.high)


class Observation(NamedTuple):
    """A point {key: value} and its loss: inf if it failed, None while it is running.

    stopped: the step at which a rule stopped it, at that loss; None if none did.
    """

    point: dict
    loss: float | None
    stopped: int | None = None


@dataclasses.dataclass(frozen=True)
class Sampler(abc.ABC):
    """Draws `trials` points of a space {key: Range, or a tuple of texts to choose from}."""

    trials: Size
    seed: int = 0

    def __post_init__(self):
        check(self)

    @abc.abstractmethod
    def draw(self, space, observations, number):
        """Returns a point {key: number or text} of a space given [Observation]; `number` tells draws apart."""

    @property
    def packages(self):
        """{package that the sampler needs: name to install}."""
        return {}

    def check(self):
        """Raises config.Error if a package that the sampler needs is not installed."""
        for package, name in self.packages.items():
            if not importlib.util.find_spec(package):
                raise Error(f'{spelled(self)} needs {package}, which is not installed; try pip install {name}.')


@dataclasses.dataclass(frozen=True)
class Random(Sampler):
    """Random search."""

    def draw(self, space, observations, number):
        """Returns a point whose keys are independent of each other and of the observations."""
        draw = random.Random(f'{self.seed} {number}')
        return {key: kind.at(draw.random()) if isinstance(kind, Range) else draw.choice(kind)
                for key, kind in space.items()}


@dataclasses.dataclass(frozen=True)
class Optuna(Sampler):
    """A sampler of Optuna (Akiba et al. 2019, arXiv 1907.10902).

    The study is rebuilt for every draw, so that any worker can draw. TPE takes running points for bad ones (constant
    liar), which spreads the points of parallel workers.
    """

    sampler: Literal['TPE', 'GP'] = 'TPE'

    @property
    def packages(self):
        return {'optuna': "'lm[optuna]'"} | ({'torch': 'torch'} if self.sampler == 'GP' else {})

    def draw(self, space, observations, number):
        """Returns the point that a study of the observations suggests."""
        self.check()
        import optuna
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        kinds = {key: _distribution(optuna.distributions, kind) for key, kind in space.items()}
        seed = random.Random(f'{self.seed} {number}').getrandbits(31)
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            chosen = {'TPE': lambda: optuna.samplers.TPESampler(seed=seed, constant_liar=True),
                      'GP': lambda: optuna.samplers.GPSampler(seed=seed)}[self.sampler]()
            study = optuna.create_study(sampler=chosen)
            for observation in observations:
                study.add_trial(_frozen(optuna.trial, observation, kinds))
            point = study.ask(kinds).params
        return {key: space[key].clipped(value) if isinstance(space[key], Range) else value
                for key, value in point.items()}


def _distribution(kinds, kind):
    if not isinstance(kind, Range):
        return kinds.CategoricalDistribution(kind)
    make = kinds.IntDistribution if kind.integer else kinds.FloatDistribution
    return make(*kind, log=kind.low > 0)


def _frozen(trial, observation, kinds):
    """Returns an Observation as a trial of Optuna."""
    point, loss, stopped = observation
    about = {'params': point, 'distributions': kinds}
    if stopped is not None:
        return trial.create_trial(state=trial.TrialState.PRUNED, intermediate_values={stopped: loss}, **about)
    if loss is None:
        return trial.create_trial(state=trial.TrialState.RUNNING, **about)
    return trial.create_trial(value=loss, **about)


def space_of(over):
    """Returns the space of texts like optimizer.peak=1e-4..1e-2 and model.layer.attention.position=Rope,Alibi."""
    return {text.partition('=')[0]: _kind(text) for text in over}


def _kind(text):
    key, _, values = text.partition('=')
    span, choices = range_of(values), tuple(split(values))
    if span and not span.low < span.high:
        raise Error(f'--over {text} is an empty range; write the lower end first.')
    if not all(choices):
        raise Error(f'--over {text} is no range or list; write it as {key or "optimizer.peak"}=1e-4..1e-2.')
    return span or choices


def range_of(text):
    """Returns the Range of a text like 1e-4..1e-2, None of any other text."""
    try:
        low, high = map(_number, text.split('..'))
    except ValueError:
        return None
    return Range(low, high) if math.isfinite(low) and math.isfinite(high) else None


def _number(text):
    try:
        return int(text)
    except ValueError:
        return float(text)
