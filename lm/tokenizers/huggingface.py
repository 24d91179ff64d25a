"""Tokenizers of the Hugging Face kind: a `tokenizer.json` file."""

import dataclasses
import functools
import gzip
import json
import re
import zlib

import numpy as np

from lm import config
from lm.config import files, paths
from lm.config.files import require
from lm.tokenizers.plain import Encoder, Tokenizer, hashed, kept, unbroken

_EOS = ('<|endoftext|>', '<|end_of_text|>', '</s>', '<eos>', '<｜end▁of▁sentence｜>', '[EOS]', '[SEP]')
_BOS = ('<|begin_of_text|>', '<s>', '<bos>', '<｜begin▁of▁sentence｜>', '[BOS]', '[CLS]')
_CONTROL = re.compile(r'<.+>|\[.+\]|\|.+\|', re.DOTALL)


@dataclasses.dataclass(frozen=True)
class HuggingFace(Tokenizer):
    """The tokens of a `tokenizer.json` file, also .gz; `eos` and `bos` are found by their usual names where not given.

    Added tokens spelled like <this>, [this] or |this| are control tokens, whatever the file says of them.
    """
    file: str
    eos: str = ''
    bos: str = ''

    @property
    def source_file(self):
        return self.file

    def fit(self, texts, directory):
        stored = kept(directory, 'tokenizer.json', lambda: _load(self.file), texts)
        try:
            content = stored.decode('utf-8')
            vocabulary = _tokenizer(content).get_vocab(with_added_tokens=True)
        except config.Error:
            raise
        except ValueError as error:
            raise config.Error(f'{self.file!r} is no tokenizer.json ({config.first_line(error)}); '
                               'give the path of one that `tokenizers` can read.') from error
        eos = _find(self.eos, _EOS, vocabulary)
        if eos is None:
            raise config.Error(f'{self.file} has none of the usual end tokens ({", ".join(_EOS)}); '
                               'set tokenizer.eos to the one that ends a document.')
        return JsonEncoder(content, eos, _find(self.bos, _BOS, vocabulary))


def _load(path):
    content = paths.read(path, 'tokenizer.json')
    try:
        return gzip.decompress(content) if path.endswith('.gz') else content
    except (OSError, EOFError, zlib.error) as error:
        raise config.Error(f'{path!r} cannot be decompressed ({error}); fetch it again.') from error


def _find(named, usual, vocabulary):
    """Returns the id of the token `named`, else of the first of the `usual` names, None where there is none."""
    if named and named not in vocabulary:
        raise config.Error(f'{named!r} is not a token of this tokenizer; choose one that its file lists.')
    return next((vocabulary[name] for name in ([named] if named else usual) if name in vocabulary), None)


@functools.lru_cache(4)
def _tokenizer(content):
    """Returns the tokenizer that a tokenizer.json describes; raises ValueError where it describes none."""
    tokenizers = require('tokenizers', 'a tokenizer.json', "'lm[hf]'")
    described = files.parse_json(content, {'model': dict})
    try:
        for token in described.get('added_tokens') or ():
            token['special'] = token['special'] or bool(_CONTROL.fullmatch(token['content']))
        tokenizer = tokenizers.Tokenizer.from_str(json.dumps(described))
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic in Rust is no Exception
        raise ValueError(config.first_line(error)) from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    return tokenizer


@dataclasses.dataclass(frozen=True)
class JsonEncoder(Encoder):
    """The Encoder of HuggingFace: `content` is that of a tokenizer.json file."""
    content: str = dataclasses.field(repr=False)
    eos: int
    bos: int | None = None

    @functools.cached_property
    def _tokenizer(self):
        return _tokenizer(self.content)

    @functools.cached_property
    def vocabulary(self):
        """{token: id}, added ones with the others."""
        return self._tokenizer.get_vocab(with_added_tokens=True)

    @functools.cached_property
    def size(self):
        return max(self.vocabulary.values()) + 1

    @functools.cached_property
    def _seamless(self):
        """Whether segments encoded one by one decode to their text: not where a tokenizer puts a space before each."""
        return self.decode(self.join(self.encode_segments(['a\n', 'b']))) == 'a\nb'

    @functools.cached_property
    def controls(self):
        return frozenset(id for id, token in self._tokenizer.get_added_tokens_decoder().items() if token.special)

    def split(self, text):
        return super().split(text) if self._seamless else (text,)

    def encode_segments(self, texts):
        encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array(encoding.ids, self.dtype) for encoding in encodings]

    def whole(self, text):
        return np.array(self._tokenizer.encode(unbroken(text), add_special_tokens=True).ids, self.dtype)

    def decode(self, ids):
        return self._tokenizer.decode(np.asarray(ids).tolist(), skip_special_tokens=True)

    def fingerprint(self):
        return config.fingerprint(['tokenizer.json', hashed(self.content.encode('utf-8')), self.eos])
