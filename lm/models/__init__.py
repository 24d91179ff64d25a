"""Models, one file a family, over one stack of layers."""
from lm.models.decoder import Decoder
from lm.models.electra import Detector, Electra
from lm.models.embedding import Embedding, Head, NoHead
from lm.models.encoder import Encoder, First, FirstToken, MaskedHead, Mean, Pooling, TypedEmbedding
from lm.models.encoder_decoder import EncoderDecoder, Half, ScaledHead
from lm.models.model import Auxiliary, Model, TokenModel
from lm.models.multi_token import MultiTokenDecoder
from lm.models.mup import MupBase
from lm.models.residuals import OutputNorm, PostNorm, PreNorm, Residual, SandwichNorm
from lm.models.text_vae import Added, AsMemory, AsPrefix, Condition, TextVae
from lm.models.transformer import Layer, Stack

__all__ = ['Added', 'AsMemory', 'AsPrefix', 'Auxiliary', 'Condition', 'Decoder', 'Detector', 'Electra', 'Embedding',
           'Encoder', 'EncoderDecoder', 'First', 'FirstToken', 'Half', 'Head', 'Layer', 'MaskedHead', 'Mean',
           'Model', 'MultiTokenDecoder', 'MupBase', 'NoHead', 'OutputNorm', 'Pooling', 'PostNorm', 'PreNorm',
           'Residual', 'SandwichNorm', 'ScaledHead', 'Stack', 'TextVae', 'TokenModel', 'TypedEmbedding']
