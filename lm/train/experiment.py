"""An experiment as a value: what to train, on what, for which objective, and how often it is logged and saved."""
from dataclasses import dataclass, field
from typing import Annotated, ClassVar

from lm import config, optim
from lm.config import legacy
from lm.data import Corpus
from lm.models import Model
from lm.train.objectives import NextToken, Objective
from lm.train.start import Fresh, Start


@dataclass(frozen=True)
class Cadence:
    """Every how many steps a run is logged, validated and saved; 0 for only at the end.

    eval_batches: of a validation before the end, 0 for all. keep: how many of the last checkpoints, beside the best.
    """

    log: config.Size = 10
    eval: config.Count = 0
    eval_batches: config.Count = 0
    save: config.Count = 0
    keep: config.Size = 2

    def __post_init__(self):
        config.check(self)


@dataclass(frozen=True)
class Diagnosis:
    """What is measured of a run beside its loss.

    spike: how many deviations above the running median a loss is recorded, see spikes.Detector (0: none is).
    noise_scale: whether it is estimated from the micro-batches, see noise_scale.Scale, for the memory of a gradient.
    """

    spike: config.NonNegative = 8.0
    noise_scale: bool = False

    def __post_init__(self):
        config.check(self)


@dataclass(frozen=True)
class Config:
    """An experiment: what to train, on what, how, and for how many steps.

    mesh: sizes of its axes, or the name of a cluster, see sharding.make_mesh. zero: the optimizer's state is split over
    the mesh axis data as well as fsdp. accumulate: micro-batches a step, equal to one big batch. After `patience`
    updates in a row that are not finite the run goes back to the last checkpoint and skips the batches up to there.
    """

    model: Model
    data: Corpus
    optimizer: optim.Optimizer
    steps: config.Size
    objective: Objective = field(default_factory=NextToken)
    start: Start = field(default_factory=Fresh)
    cadence: Cadence = field(default_factory=Cadence)
    diagnosis: Diagnosis = field(default_factory=Diagnosis)
    seed: Annotated[int, config.Interval(-2 ** 31, 2 ** 31 - 1)] = 0  # jax keeps 32 bits of it
    mesh: dict[str, int] | str = field(default_factory=lambda: {'data': -1})
    zero: bool = False
    accumulate: config.Size = 1
    patience: config.Size = 5

    MOVED: ClassVar[dict[str, str]] = legacy.CONFIG

    def __post_init__(self):
        config.check(self)
        if self.diagnosis.noise_scale and self.accumulate == 1:
            raise config.Error('noise_scale=true compares micro-batches and accumulate=1 makes one; try accumulate=2.')
        if self.data.batch % self.accumulate:
            near = max(1, round(self.data.batch / self.accumulate)) * self.accumulate
            raise config.Error(f'data.batch={self.data.batch} is not a multiple of accumulate={self.accumulate}; '
                               f'try data.batch={near}.')
        self.optimizer.rate(self.steps)  # raises where the schedule does not fit the steps
        self.objective.check(self.model)
