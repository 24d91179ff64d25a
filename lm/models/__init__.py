"""Models, one file a family."""
from lm.models.decoder import Decoder

__all__ = ['Decoder']
