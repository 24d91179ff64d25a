"""Models, one file a family, over one stack of layers."""
from lm.models.decoder import Decoder
from lm.models.embedding import Embedding, Head
from lm.models.encoder_decoder import EncoderDecoder, Half, ScaledHead
from lm.models.model import Auxiliary, Model, TokenModel
from lm.models.mup import MupBase
from lm.models.transformer import Layer, OutputNorm, PostNorm, PreNorm, Residual, SandwichNorm, Stack

__all__ = ['Auxiliary', 'Decoder', 'Embedding', 'EncoderDecoder', 'Half', 'Head', 'Layer', 'Model', 'MupBase',
           'OutputNorm', 'PostNorm', 'PreNorm', 'Residual', 'SandwichNorm', 'ScaledHead', 'Stack', 'TokenModel']
