"""What loss a run minimises, and what it scores and shows at the end: one file an objective."""
from lm.train.objectives.contrastive import Contrastive
from lm.train.objectives.masked import MaskedLM
from lm.train.objectives.next_sentence import NextSentence
from lm.train.objectives.next_token import NextToken
from lm.train.objectives.objective import Objective, TokenObjective
from lm.train.objectives.replaced_token import ReplacedToken
from lm.train.objectives.sentence_order import SentenceOrder
from lm.train.objectives.sentence_pairs import SentencePair

__all__ = ['Contrastive', 'MaskedLM', 'NextSentence', 'NextToken', 'Objective', 'ReplacedToken', 'SentenceOrder',
           'SentencePair', 'TokenObjective']
