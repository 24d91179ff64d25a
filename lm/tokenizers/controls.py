"""Control tokens behind those of another tokenizer: masks, sentinels, separators."""
import dataclasses
import functools

import numpy as np

from lm import config
from lm.tokenizers.plain import Encoder, Tokenizer


@dataclasses.dataclass(frozen=True)
class Controls(Tokenizer):
    """The tokens of a tokenizer and behind them one for each of `names`, which no text is encoded to.

    Controls(Bytes(), ('<mask>',)) has 259 tokens, the last of which hides others from a masked language model.
    """

    tokenizer: Tokenizer
    names: tuple[str, ...]

    def __post_init__(self):
        if len(set(self.names)) < len(self.names):
            raise config.Error(f'names={self.names} has a name twice; leave one out.')

    @property
    def source_file(self):
        return self.tokenizer.source_file

    def fit(self, texts, directory):
        return ControlEncoder(self.tokenizer.fit(texts, directory), self.names)


@dataclasses.dataclass(frozen=True)
class ControlEncoder(Encoder):
    """The Encoder of Controls."""

    encoder: Encoder
    names: tuple[str, ...]

    @property
    def bos(self):
        return self.encoder.bos

    @property
    def eos(self):
        return self.encoder.eos

    @property
    def size(self):
        return self.encoder.size + len(self.names)

    @functools.cached_property
    def controls(self):
        return self.encoder.controls | frozenset(range(self.encoder.size, self.size))

    def whole(self, text):
        return self.encoder.whole(text)

    def split(self, text):
        return self.encoder.split(text)

    def encode_segments(self, texts):
        return self.encoder.encode_segments(texts)

    def decode(self, ids):
        ids = np.asarray(ids)
        return self.encoder.decode(ids[ids < self.encoder.size])

    def fingerprint(self):
        return config.fingerprint(['controls', self.encoder.fingerprint(), self.names])

    def exact(self):
        return dataclasses.replace(self, encoder=self.encoder.exact())
