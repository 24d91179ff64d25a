"""Text from a trained model: sampling token by token, beam search, and unmasking."""
from lm.generate.beam import Beams, beam_search
from lm.generate.sampling import LENGTH, Decoding, Sample, Sampler, begin, extend, generate, opening, stream
from lm.generate.unmask import unmask

__all__ = ['LENGTH', 'Beams', 'Decoding', 'Sample', 'Sampler', 'beam_search', 'begin', 'extend', 'generate', 'opening',
           'stream', 'unmask']
