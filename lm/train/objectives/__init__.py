"""What loss a run minimises, and what it scores and shows at the end: one file an objective."""
from lm.train.objectives.conditional import Conditional
from lm.train.objectives.diffusion import MaskedDiffusion
from lm.train.objectives.infilling import TextInfilling
from lm.train.objectives.masked import MaskedLM
from lm.train.objectives.mixture import Mixture
from lm.train.objectives.next_token import NextToken
from lm.train.objectives.objective import Objective, TokenObjective
from lm.train.objectives.prefix import PrefixLM
from lm.train.objectives.spans import SpanCorruption

__all__ = ['Conditional', 'MaskedDiffusion', 'MaskedLM', 'Mixture', 'NextToken', 'Objective', 'PrefixLM',
           'SpanCorruption', 'TextInfilling', 'TokenObjective']
