"""Training: the experiment's Config with its objective and start, the one step, and the loop around it."""
from lm.train.experiment import Cadence, Config, Diagnosis
from lm.train.objectives import (
    Contrastive,
    MaskedLM,
    NextSentence,
    NextToken,
    Objective,
    ReplacedToken,
    SentenceOrder,
    SentencePair,
    TokenObjective,
)
from lm.train.start import Fresh, From, Start
from lm.train.step import Parts, Program, State, accumulated, gradients, make_step, parts, placed, program

__all__ = ['Cadence', 'Config', 'Contrastive', 'Diagnosis', 'Fresh', 'From', 'MaskedLM', 'NextSentence', 'NextToken',
           'Objective', 'Parts', 'Program', 'ReplacedToken', 'SentenceOrder', 'SentencePair', 'Start', 'State',
           'TokenObjective', 'accumulated', 'gradients', 'make_step', 'parts', 'placed', 'program']
