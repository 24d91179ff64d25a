"""Optimizers and schedules, one frozen dataclass each: `optim.AdamW(peak=1e-3, schedule=optim.Cosine(warmup=100))`.

Another one is a subclass of Optimizer or Schedule in a file of its own or in the experiment: docs/optimizers.md.
"""
from lm.optim.optimizers import (
    SGD,
    Adafactor,
    AdaGrad,
    Adam,
    AdamW,
    Lion,
    Muon,
    Optimizer,
    ScheduleFree,
    State,
)
from lm.optim.schedules import WSD, Constant, Cosine, InverseSqrt, Linear, Schedule

__all__ = ['SGD', 'WSD', 'AdaGrad', 'Adafactor', 'Adam', 'AdamW', 'Constant', 'Cosine', 'InverseSqrt', 'Linear', 'Lion',
           'Muon', 'Optimizer', 'Schedule', 'ScheduleFree', 'State']
