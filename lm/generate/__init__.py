"""Text from a trained model: sampling token by token, and beam search."""
from lm.generate.beam import Beams, beam_search
from lm.generate.sampling import LENGTH, Decoding, Sample, Sampler, begin, extend, generate, opening, stream

__all__ = ['LENGTH', 'Beams', 'Decoding', 'Sample', 'Sampler', 'beam_search', 'begin', 'extend', 'generate', 'opening',
           'stream']
