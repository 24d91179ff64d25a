"""SentencePiece: subwords learned from the training text, or those of an existing model."""

import dataclasses
import functools
import heapq
import io
import re
import threading
import zlib
from typing import Literal

import numpy as np

from lm import config
from lm.config import paths
from lm.config.files import require
from lm.config.hashing import fraction
from lm.tokenizers.plain import Encoder, Tokenizer, hashed, kept

_MARK = '▁'
_MARK_BYTES = ('<0xE2>', '<0x96>', '<0x81>')
_PIECE = 4000
_sampling = threading.Lock()  # SentencePiece has one random generator for all threads


@dataclasses.dataclass(frozen=True)
class SentencePiece(Tokenizer):
    """`size` subwords, trained as 'unigram' or 'bpe' on some `sample` bytes drawn evenly from the training text.

    Bytes stand in for characters that are no piece and the text is not normalised, so every text survives a round
    trip. BPE trains some ten times faster, unigram encodes some four times faster. `model` is the path of an existing
    .model, which replaces the training. With `alpha` above 0 the training text is segmented at random, once, when its
    cache is written, and on one core: unigram draws by its probabilities to the power of `alpha` (Kudo 2018; try 0.2),
    BPE drops merges with probability `alpha` (Provilkov 2020; try 0.1).
    """
    size: config.Size = 4096
    kind: Literal['unigram', 'bpe'] = 'unigram'
    model: str = ''
    alpha: config.FractionBelowOne = 0.0
    sample: config.Size = 10_000_000

    def __post_init__(self):
        config.check(self)
        if self.size < 260:
            raise config.Error(f'size={self.size} has no room for 256 bytes and 3 control pieces; try size=512.')

    @property
    def source_file(self):
        return self.model

    def fit(self, texts, directory):
        def learn():
            return paths.read(self.model, 'SentencePiece model') if self.model else self._train(texts)

        encoder = PieceEncoder(kept(directory, 'sentencepiece.model', learn, texts), self.alpha)
        try:
            _ = encoder.size
        except (RuntimeError, UnicodeDecodeError) as error:
            file = repr(self.model) if self.model else f'{directory}/sentencepiece.model'
            raise config.Error(f'{file} is no SentencePiece model ({config.first_line(error)}); '
                               'give the path of a .model file.') from error
        return encoder

    def _train(self, texts):
        sentencepiece = require('sentencepiece', 'this tokenizer', 'sentencepiece')
        written = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(sample_pieces(texts, self.sample)), model_writer=written, model_type=self.kind,
                vocab_size=self.size, byte_fallback=True, normalization_rule_name='identity', add_dummy_prefix=False,
                remove_extra_whitespaces=False, split_digits=True, allow_whitespace_only_pieces=True,
                max_sentence_length=4 * _PIECE, unk_id=0, bos_id=1, eos_id=2, pad_id=-1, num_threads=16, minloglevel=2)
        except RuntimeError as error:
            raise config.Error(self._explain(str(error))) from error
        return written.getvalue()

    def _explain(self, message):
        most = re.search(r'value <= (\d+)', message)
        least = re.search(r'smaller than required_chars\. \d+ vs (\d+)', message)
        if most:
            return f'size={self.size} is more than this training text has pieces for; try size={most[1]}.'
        if least:
            return (f'size={self.size} is less than the {least[1]} characters and bytes it must hold; '
                    f'try size={2 * int(least[1])}.')
        return f'SentencePiece could not be trained: {" ".join(message.split())}; give it more text or a smaller size.'


def sample_pieces(texts, limit):
    """Returns a uniform sample of pieces of lines of `texts`, some `limit` bytes in all, in their order.

    Pieces have at most 4,000 characters. Which are chosen depends on their numbers alone: those of the least hash.
    """
    kept, total = [], 0
    for number, piece in enumerate(piece for text in texts for piece in _pieces(text)):
        size = len(piece.encode('utf-8'))
        heapq.heappush(kept, (-fraction(number), number, size, piece))
        total += size
        while total - kept[0][2] >= limit:
            total -= heapq.heappop(kept)[2]
    return [piece for _, _, _, piece in sorted(kept, key=lambda entry: entry[1])]


def _pieces(text):
    start = 0
    while start < len(text):
        stop = text.rfind('\n', start, start + _PIECE) + 1 if len(text) - start > _PIECE else len(text)
        stop = stop or start + _PIECE
        yield text[start:stop]
        start = stop


@dataclasses.dataclass(frozen=True)
class PieceEncoder(Encoder):
    """The Encoder of SentencePiece: `model` is the content of a .model file."""
    model: bytes = dataclasses.field(repr=False)
    alpha: float = 0.0

    @functools.cached_property
    def _processor(self):
        sentencepiece = require('sentencepiece', 'this tokenizer', 'sentencepiece')
        if not self.model:
            raise RuntimeError('it is empty')
        return sentencepiece.SentencePieceProcessor(model_proto=self.model)

    @functools.cached_property
    def size(self):
        return self._processor.vocab_size()

    @functools.cached_property
    def bos(self):
        return self._control(self._processor.bos_id())

    @functools.cached_property
    def eos(self):
        return self._control(self._processor.eos_id())

    @functools.cached_property
    def controls(self):
        kinds = self._processor.is_control, self._processor.is_unused
        return frozenset(id for id in range(self.size) if any(is_kind(id) for is_kind in kinds))

    def _control(self, index):
        return index if index >= 0 else None

    @functools.cached_property
    def _seamless(self):
        """Whether segments encoded one by one decode to their text: not where a model puts a space before each."""
        return self.decode(self.join(self._pieces(['a\n', 'b']))) == 'a\nb'

    @functools.cached_property
    def _mark(self):
        """The ids of the bytes of '▁', which SentencePiece itself would decode as a space; empty where it has none."""
        ids = [self._processor.piece_to_id(piece) for piece in _MARK_BYTES]
        return np.array(ids if self._seamless and all(map(self._processor.is_byte, ids)) else [], self.dtype)

    def split(self, text):
        return super().split(text) if self._seamless else (text,)

    def encode_segments(self, texts):
        """Returns the ids of each of a list of segments; a '▁' in the text is spelled in bytes, between its parts."""
        whole = self._pieces(texts)
        if self._mark.size:
            for number, text in enumerate(texts):
                if _MARK in text:
                    first, *rest = self._pieces(text.split(_MARK))
                    whole[number] = self.join([first, *(ids for part in rest for ids in (self._mark, part))])
        return whole

    def _pieces(self, texts):
        encode = getattr(self._processor, 'encode_as_numpy', self._processor.encode_as_ids)
        if self.alpha == 0:
            return [np.asarray(ids, np.int32) for ids in encode(texts, num_threads=1)]
        sentencepiece = require('sentencepiece', 'this tokenizer', 'sentencepiece')
        sampled = []
        with _sampling:
            for text in texts:
                sentencepiece.set_random_generator_seed(zlib.crc32(text.encode('utf-8')))
                sampled.append(encode(text, enable_sampling=True, nbest_size=-1, alpha=self.alpha))
        return [np.asarray(ids, np.int32) for ids in sampled]

    def decode(self, ids):
        return self._processor.decode(np.asarray(ids).tolist())

    def fingerprint(self):
        return config.fingerprint(['sentencepiece', hashed(self.model), self.alpha])

    def exact(self):
        return dataclasses.replace(self, alpha=0.0)
