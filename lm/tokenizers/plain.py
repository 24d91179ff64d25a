"""Tokenizers: the base classes, and those without a library: bytes, characters, words.

A Tokenizer is a setting whose `fit` makes or loads an Encoder, which turns text into token ids and back. Text is never
parsed for control tokens: a '<eos>' that a user writes becomes ordinary tokens.
"""

import dataclasses
import functools
import hashlib
import json
import pathlib
import re
import unicodedata
from collections import Counter

import numpy as np

from lm import config
from lm.config import checksums, files

_SEGMENT, _LONGEST = 2 ** 16, 2 ** 21
_WORD_CONTROLS = ('<unk>', '<eos>')
_REMEDY = 'restore it from a copy, or run the command of the run again, which makes it of its training text.'
_BREAK = re.compile(r'(?<=\S)\n(?=\S)')


class Tokenizer:
    """How text becomes tokens. `source_file` is the path of the file that defines it, '' where training text does."""

    source_file = ''

    def fit(self, texts, directory):
        """Returns the Encoder kept in `directory`, made from the strings `texts` and kept there where it is missing.

        For `texts` of None it is only read: nothing is made, and no other file is opened.
        """
        raise NotImplementedError


def unbroken(text):
    """Returns a text; raises config.Error where it has lone surrogates, as arguments that are no UTF-8 do."""
    try:
        text.encode('utf-8')
    except UnicodeEncodeError as error:
        near = text[max(error.start - 20, 0):error.start + 20]
        raise config.Error(f'the text is not valid UTF-8 at character {error.start}, {near!r}; give UTF-8.') from error
    return text


class Encoder:
    """Text to ids and back. `size` counts all ids; `eos` ends a document, None where nothing does; `bos` likewise."""

    size: int
    bos: int | None = None
    eos: int | None = None

    def encode(self, text):
        """Returns the ids of `text`, integers [N]: those of its segments one after the other."""
        return self.join(self.encode_segments(list(self.split(unbroken(text)))))

    def encode_batch(self, texts):
        """Returns the ids of each of `texts`."""
        return [self.encode(text) for text in texts]

    def whole(self, text):
        """Returns the ids of a text that stands by itself, among control tokens where those are part of the tokenizer.
        """
        return self.encode(text)

    def split(self, text):
        """Returns an iterable of the pieces of `text` that are encoded by themselves."""
        return segments(text)

    def encode_segments(self, texts):
        """Returns the ids of each of a list of such pieces."""
        raise NotImplementedError

    def join(self, arrays):
        """Returns arrays of ids as one of `dtype`."""
        return np.concatenate([np.zeros(0, self.dtype), *arrays]).astype(self.dtype, copy=False)

    def decode(self, ids):
        """Returns the text of `ids`, without control tokens; bytes that are not UTF-8 become U+FFFD."""
        raise NotImplementedError

    def decode_after(self, before, ids):
        """Returns the text of `ids` behind the ids `before`: alone, many tokenizers decode ids without a first space.
        """
        start, whole = self.decode(before), self.decode([*before, *ids])
        return whole[next((at for at, (a, b) in enumerate(zip(start, whole)) if a != b), len(start)):]

    def fingerprint(self):
        """Returns 16 hex digits that are equal where two encoders encode equally."""
        raise NotImplementedError

    def exact(self):
        """Returns this encoder without sampling: one text, always one sequence of ids."""
        return self

    @property
    def controls(self):
        """The ids that no text is encoded to."""
        return frozenset({self.bos, self.eos} - {None})

    @functools.cached_property
    def begins(self):
        """Which tokens begin a word, bool [size]: a space or a punctuation mark comes first, or it is a control token.

        Writing without spaces has long words.
        """
        before = self.encode('a')
        texts = [self.decode_after(before, [id]) for id in range(self.size)]
        return np.array([id in self.controls or text[:1].isspace() or unicodedata.category(text[0])[0] == 'P'
                         if text else True for id, text in enumerate(texts)])

    @property
    def dtype(self):
        """Returns the smallest of uint16 and uint32 that holds every id."""
        return np.dtype(np.uint16 if self.size <= 2 ** 16 else np.uint32)


def segments(text):
    """Yields consecutive pieces of some 65,000 characters that add up to `text`, of up to 2M where nothing breaks them.

    They begin after a single line break, or else at a space: where a token begins in any case.
    """
    start = 0
    while len(text) - start > 2 * _SEGMENT:
        least, most = start + _SEGMENT, start + 2 * _SEGMENT
        line, space = _BREAK.search(text, least, most), text.find(' ', least, start + _LONGEST)
        stop = line.end() if line else space if space >= 0 else start + _LONGEST
        yield text[start:stop]
        start = stop
    if start < len(text):
        yield text[start:]


def kept(directory, name, make, texts):
    """Returns the content of the file `name` in a tokenizer's directory, made by `make()` and kept where it is missing
    and there are `texts`.
    """
    path = pathlib.Path(directory) / name
    if texts is None and not path.is_file():
        raise checksums.Damaged(f'{path} is missing', _REMEDY)
    return checksums.kept(path, make, _REMEDY)


def _kept_list(directory, name, make, texts):
    """Returns the list of strings that is kept, as JSON, in the file `name` of a tokenizer's directory."""
    content = kept(directory, name, lambda: json.dumps(make()).encode(), texts)
    try:
        return tuple(files.parse_json(content, [str]))
    except ValueError as error:
        raise checksums.Damaged(f'{pathlib.Path(directory) / name} is damaged ({error})', _REMEDY) from error


def hashed(content):
    """Returns 16 hex digits of bytes."""
    return hashlib.sha256(content).hexdigest()[:16]


@dataclasses.dataclass(frozen=True)
class Bytes(Tokenizer):
    """The 256 bytes of UTF-8, and <bos> 256 and <eos> 257: 258 ids, nothing to train."""

    def fit(self, texts, directory):
        return ByteEncoder()


@dataclasses.dataclass(frozen=True)
class ByteEncoder(Encoder):
    """The Encoder of Bytes."""
    size: int = 258
    bos: int = 256
    eos: int = 257

    def encode_segments(self, texts):
        return [np.frombuffer(text.encode('utf-8'), np.uint8) for text in texts]

    def decode(self, ids):
        ids = np.asarray(ids, np.int64)
        return ids[ids < 256].astype(np.uint8).tobytes().decode('utf-8', errors='replace')

    def fingerprint(self):
        return config.fingerprint('bytes')


def _present(pieces, directory):
    """Returns what was learned from the training text; raises config.Error where there was none, as beside a run."""
    if not pieces:
        raise config.Error(f'there is no tokenizer in {directory}, nor training text to make it from; '
                           'restore that directory from a copy.')
    return pieces


@dataclasses.dataclass(frozen=True)
class Chars(Tokenizer):
    """The distinct characters of the training text, sorted, and nothing else.

    Documents are not separated. A character that the training text lacks is an error: dropping it would make the
    validation loss that of another text.
    """

    def fit(self, texts, directory):
        def learn():
            characters = set()
            for text in texts:
                characters.update(text)
            return sorted(_present(characters, directory))

        characters = _kept_list(directory, 'chars.json', learn, texts)
        if not characters or any(len(character) != 1 for character in characters):
            raise checksums.Damaged(f'{directory}/chars.json is damaged (it does not list characters)', _REMEDY)
        return CharEncoder(characters)


@dataclasses.dataclass(frozen=True)
class CharEncoder(Encoder):
    """The Encoder of Chars: id i is `characters[i]`."""
    characters: tuple[str, ...] = dataclasses.field(repr=False)

    @property
    def size(self):
        return len(self.characters)

    @functools.cached_property
    def _ids(self):
        points = [ord(character) for character in self.characters]
        table = np.full(max(points) + 2, -1, np.int32)
        table[points] = np.arange(len(points))
        return table

    def encode_segments(self, texts):
        return [self._look_up(text) for text in texts]

    def _look_up(self, text):
        points = np.frombuffer(text.encode('utf-32-le'), np.uint32)
        ids = self._ids[np.minimum(points, self._ids.size - 1)]
        if ids.min(initial=0) < 0:
            unknown = list(dict.fromkeys(points[ids < 0].tolist()))
            named = ', '.join(f'{chr(point)!r} (U+{point:04X})' for point in unknown[:8]) + ', ...' * (len(unknown) > 8)
            raise config.Error(f'{named} {"are" if len(unknown) > 1 else "is"} not among the {self.size} characters of '
                               f'the training text; remove {"them" if len(unknown) > 1 else "it"}, or train with '
                               'data.tokenizer=Bytes(), which takes every text.')
        return ids.astype(self.dtype)

    def decode(self, ids):
        return ''.join(self.characters[index] for index in np.asarray(ids).tolist())

    def fingerprint(self):
        return config.fingerprint(['chars', self.characters])


@dataclasses.dataclass(frozen=True)
class Words(Tokenizer):
    """The words between spaces that occur `least` times or more in the training text; the end of a line is <eos>.

    Any other word becomes <unk>, so text does not survive a round trip. Documents are not separated further. This is
    how WikiText is counted: its 33,278 types include <unk> and <eos>.
    """
    least: config.Size = 1

    def __post_init__(self):
        config.check(self)

    def fit(self, texts, directory):
        def learn():
            counts = Counter(word for text in texts for line in text.split('\n') for word in line.split(' '))
            words = sorted(word for word in _present(counts, directory) if word and counts[word] >= self.least)
            return [*_WORD_CONTROLS, *(word for word in words if word not in _WORD_CONTROLS)]

        words = _kept_list(directory, 'words.json', learn, texts)
        if words[:2] != _WORD_CONTROLS:
            raise checksums.Damaged(f'{directory}/words.json is damaged (it does not begin with <unk>, <eos>)', _REMEDY)
        return WordEncoder(words)


@dataclasses.dataclass(frozen=True)
class WordEncoder(Encoder):
    """The Encoder of Words: id 0 is <unk>, 1 the end of a line, i is `words[i]`."""
    words: tuple[str, ...] = dataclasses.field(repr=False)

    @property
    def size(self):
        return len(self.words)

    @functools.cached_property
    def _ids(self):
        return {word: index for index, word in enumerate(self.words) if index != 1} | {'\n': 1}

    def encode_segments(self, texts):
        return [np.array([self._ids.get(word, 0) for word in text.replace('\n', ' \n ').split(' ') if word], self.dtype)
                for text in texts]

    def decode(self, ids):
        words = ['\n' if index == 1 else self.words[index] for index in np.asarray(ids).tolist()]
        return ' '.join(words).replace(' \n', '\n').replace('\n ', '\n')

    def fingerprint(self):
        return config.fingerprint(['words', self.words])
