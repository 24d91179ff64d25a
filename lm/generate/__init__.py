"""Text from a trained model: sampling token by token or several drafts at once, beam search, and unmasking."""
from lm.generate.beam import Beams, beam_search
from lm.generate.sampler import Sampler
from lm.generate.sampling import LENGTH, Decoding, Sample, begin, extend, generate, opening, stream
from lm.generate.speculation import tokens_a_pass
from lm.generate.unmask import unmask

__all__ = ['LENGTH', 'Beams', 'Decoding', 'Sample', 'Sampler', 'beam_search', 'begin', 'extend', 'generate', 'opening',
           'stream', 'tokens_a_pass', 'unmask']
