"""Training: the experiment's Config with its objective and start, the one step, and the loop around it."""
from lm.train.experiment import Cadence, Config, Diagnosis
from lm.train.objectives import (
    Conditional,
    MaskedDiffusion,
    MaskedLM,
    Mixture,
    NextToken,
    Objective,
    PrefixLM,
    SpanCorruption,
    TextInfilling,
    TokenObjective,
)
from lm.train.start import Fresh, From, Start
from lm.train.step import Parts, Program, State, accumulated, gradients, make_step, parts, placed, program

__all__ = ['Cadence', 'Conditional', 'Config', 'Diagnosis', 'Fresh', 'From', 'MaskedDiffusion', 'MaskedLM', 'Mixture',
           'NextToken', 'Objective', 'Parts', 'PrefixLM', 'Program', 'SpanCorruption', 'Start', 'State',
           'TextInfilling', 'TokenObjective', 'accumulated', 'gradients', 'make_step', 'parts', 'placed', 'program']
