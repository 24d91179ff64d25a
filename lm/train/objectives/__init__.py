"""What loss a run minimises, and what it scores and shows at the end: one file an objective."""
from lm.train.objectives.conditional import Conditional
from lm.train.objectives.masked import MaskedLM
from lm.train.objectives.next_token import NextToken
from lm.train.objectives.objective import Objective, TokenObjective

__all__ = ['Conditional', 'MaskedLM', 'NextToken', 'Objective', 'TokenObjective']
