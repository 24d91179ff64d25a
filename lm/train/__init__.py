"""Training: the experiment's Config with its objective and start, the one step, and the loop around it."""
from lm.train.experiment import Cadence, Config, Diagnosis
from lm.train.objectives import (
    BagOfWords,
    Conditional,
    Contrastive,
    Elbo,
    Glove,
    MaskedDiffusion,
    MaskedLM,
    Mixture,
    MultiToken,
    NextSentence,
    NextToken,
    Objective,
    PrefixLM,
    ReplacedToken,
    SentenceOrder,
    SentencePair,
    SkipGram,
    SpanCorruption,
    TextInfilling,
    TokenObjective,
)
from lm.train.start import Fresh, From, Start
from lm.train.step import Parts, Program, State, accumulated, gradients, make_step, parts, placed, program

__all__ = ['BagOfWords', 'Cadence', 'Conditional', 'Config', 'Contrastive', 'Diagnosis', 'Elbo', 'Fresh', 'From',
           'Glove', 'MaskedDiffusion', 'MaskedLM', 'Mixture', 'MultiToken', 'NextSentence', 'NextToken', 'Objective',
           'Parts', 'PrefixLM', 'Program', 'ReplacedToken', 'SentenceOrder', 'SentencePair', 'SkipGram',
           'SpanCorruption', 'Start', 'State', 'TextInfilling', 'TokenObjective', 'accumulated', 'gradients',
           'make_step', 'parts', 'placed', 'program']
