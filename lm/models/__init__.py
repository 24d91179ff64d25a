"""Models, one file a family, over one stack of layers."""
from lm.models.decoder import Decoder
from lm.models.embedding import Embedding, Head
from lm.models.model import Auxiliary, Model
from lm.models.mup import MupBase
from lm.models.transformer import Layer, OutputNorm, PostNorm, PreNorm, Residual, SandwichNorm, Stack

__all__ = ['Auxiliary', 'Decoder', 'Embedding', 'Head', 'Layer', 'Model', 'MupBase', 'OutputNorm', 'PostNorm',
           'PreNorm', 'Residual', 'SandwichNorm', 'Stack']
