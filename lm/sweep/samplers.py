"""What to try next in a space of ranges and choices: at random, or by what finished trials teach (Optuna)."""
import abc
import dataclasses
import importlib.util
import math
import random
import warnings
from typing import Literal, NamedTuple

from lm.config import Error, positive, spelled
from lm.sweep.trials import split


class Range(NamedTuple):
    """Numbers from `low` to `high`: log-uniform where both are positive, whole where both are."""

    low: float
    high: float

    @property
    def whole(self):
        return isinstance(self.low, int) and isinstance(self.high, int)

    def drawn(self, share):
        """Returns the number at a share in [0, 1) of the range, of four digits."""
        low, high = (self.low - 0.5, self.high + 0.5) if self.whole else self
        value = low * (high / low) ** share if self.low > 0 else low + (high - low) * share
        return self.held(round(value) if self.whole else value)

    def held(self, value):
        """Returns a number of four digits that is inside the range."""
        return min(max(value if self.whole else float(f'{value:.4g}'), self.low), self.high)


class Told(NamedTuple):
    """What became of a point {key: value}: its loss, inf where it failed, None while it is under way.

    stopped: the step at which a rule stopped it, having that loss; None where none did.
    """

    point: dict
    loss: float | None
    stopped: int | None = None


@dataclasses.dataclass(frozen=True)
class Sampler(abc.ABC):
    """Draws points of a space {key: Range, or a tuple of texts to choose from}; `trials` is how many in all."""

    trials: int
    seed: int = 0

    def __post_init__(self):
        positive(self, 'trials')

    @abc.abstractmethod
    def draw(self, space, told, number):
        """Returns the point {key: number or text} of a space after [Told]; `number` makes each draw another."""

    @property
    def packages(self):
        """{package that it needs: what to install}."""
        return {}

    def check(self):
        """Raises config.Error where a package that the sampler needs is not installed."""
        for package, name in self.packages.items():
            if not importlib.util.find_spec(package):
                raise Error(f'{spelled(self)} needs {package}, which is not installed; try pip install {name}.')


@dataclasses.dataclass(frozen=True)
class Random(Sampler):
    """Points drawn without regard to what was found."""

    def draw(self, space, told, number):
        """Returns a point, each key independent of the others."""
        draw = random.Random(f'{self.seed} {number}')
        return {key: kind.drawn(draw.random()) if isinstance(kind, Range) else draw.choice(kind)
                for key, kind in space.items()}


@dataclasses.dataclass(frozen=True)
class Optuna(Sampler):
    """Points drawn by a sampler of Optuna (Akiba et al. 2019, arXiv 1907.10902) from a study made anew each time.

    So any worker can ask. Points under way count as bad, which spreads what several workers ask for.
    """

    sampler: Literal['TPE', 'GP'] = 'TPE'

    @property
    def packages(self):
        return {'optuna': "'lm[optuna]'"} | ({'torch': 'torch'} if self.sampler == 'GP' else {})

    def draw(self, space, told, number):
        """Returns the point that a study of all Told points asks for."""
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
            for each in told:
                study.add_trial(_frozen(optuna.trial, each, kinds))
            point = study.ask(kinds).params
        return {key: space[key].held(value) if isinstance(space[key], Range) else value
                for key, value in point.items()}


def _distribution(kinds, kind):
    if not isinstance(kind, Range):
        return kinds.CategoricalDistribution(kind)
    make = kinds.IntDistribution if kind.whole else kinds.FloatDistribution
    return make(*kind, log=kind.low > 0)


def _frozen(trial, told, kinds):
    """Returns a Told point as a trial of Optuna."""
    about = {'params': told.point, 'distributions': kinds}
    if told.stopped is not None:
        return trial.create_trial(state=trial.TrialState.PRUNED, intermediate_values={told.stopped: told.loss}, **about)
    if told.loss is None:
        return trial.create_trial(state=trial.TrialState.RUNNING, **about)
    return trial.create_trial(value=told.loss, **about)


def space_of(over):
    """Returns the space of texts such as optimizer.peak=1e-4..1e-2 and model.position=Rope,Alibi."""
    return {text.partition('=')[0]: _kind(text) for text in over}


def _kind(text):
    key, _, values = text.partition('=')
    found, choices = range_of(values), tuple(split(values))
    if found and not found.low < found.high:
        raise Error(f'--over {text} is an empty range; write the lower end first.')
    if not all(choices):
        raise Error(f'--over {text} is no range or list; write it as {key or "optimizer.peak"}=1e-4..1e-2.')
    return found or choices


def range_of(text):
    """Returns the Range that a text such as 1e-4..1e-2 spells, None of another."""
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
