"""What loss a run minimises, and what it scores and shows at the end: one file an objective."""
from lm.train.objectives.conditional import Conditional
from lm.train.objectives.contrastive import Contrastive
from lm.train.objectives.diffusion import MaskedDiffusion
from lm.train.objectives.elbo import Elbo
from lm.train.objectives.infilling import TextInfilling
from lm.train.objectives.masked import MaskedLM
from lm.train.objectives.mixture import Mixture
from lm.train.objectives.multi_token import MultiToken
from lm.train.objectives.next_sentence import NextSentence
from lm.train.objectives.next_token import NextToken
from lm.train.objectives.objective import Objective, TokenObjective
from lm.train.objectives.prefix import PrefixLM
from lm.train.objectives.replaced_token import ReplacedToken
from lm.train.objectives.sentence_order import SentenceOrder
from lm.train.objectives.sentence_pairs import SentencePair
from lm.train.objectives.spans import SpanCorruption
from lm.train.objectives.words import BagOfWords, Glove, SkipGram

__all__ = ['BagOfWords', 'Conditional', 'Contrastive', 'Elbo', 'Glove', 'MaskedDiffusion', 'MaskedLM', 'Mixture',
           'MultiToken', 'NextSentence', 'NextToken', 'Objective', 'PrefixLM', 'ReplacedToken', 'SentenceOrder',
           'SentencePair', 'SkipGram', 'SpanCorruption', 'TextInfilling', 'TokenObjective']
