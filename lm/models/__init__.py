"""Models, one file a family, over one stack of layers."""
from lm.models.decoder import Decoder
from lm.models.embedding import Embedding, Head
from lm.models.mup import MupBase
from lm.models.transformer import Layer, OutputNorm, PostNorm, PreNorm, Residual, SandwichNorm, Stack

__all__ = ['Decoder', 'Embedding', 'Head', 'Layer', 'MupBase', 'OutputNorm', 'PostNorm', 'PreNorm', 'Residual',
           'SandwichNorm', 'Stack']
