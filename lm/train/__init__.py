"""Training: the experiment's Config with its objective and start, the one step, and the loop around it."""
from lm.train.experiment import Cadence, Config, Diagnosis
from lm.train.objectives import Conditional, MaskedLM, NextToken, Objective, TokenObjective
from lm.train.start import Fresh, From, Start
from lm.train.step import Parts, Program, State, accumulated, gradients, make_step, parts, placed, program

__all__ = ['Cadence', 'Conditional', 'Config', 'Diagnosis', 'Fresh', 'From', 'MaskedLM', 'NextToken', 'Objective',
           'Parts', 'Program', 'Start', 'State', 'TokenObjective', 'accumulated', 'gradients', 'make_step', 'parts',
           'placed', 'program']
