"""Sources of documents: the base class, synthetic text, and sources made of others (Mix, Cut, Pick).

A new source is one frozen dataclass with `label`, `records()` and `fingerprint()`, in any file or in the experiment.
"""

import dataclasses
import itertools
import random
from collections.abc import Iterator

from lm import config
from lm.config.hashing import fraction


@dataclasses.dataclass(frozen=True, slots=True)
class Document:
    """One text, and the name of the source it came from."""
    text: str
    source: str


@dataclasses.dataclass(frozen=True, slots=True)
class Reject:
    """What could not be used: a reason shared by many, and one place, as `file:line`.

    size: bytes of text lost, None where unknown. share: as what part of a document it counts, below 1 in a Pick.
    """
    reason: str
    place: str
    size: float | None = None
    share: float = 1.0


def examine(value, source, place):
    """Returns the Document that `value` holds, or the Reject that says why it holds none.

    `value` is what a record held: str, UTF-8 bytes, or None where the field was missing.
    """
    if value is None:
        return Reject('missing field', place)
    if not isinstance(value, str | bytes):
        return Reject(f'{type(value).__name__} instead of text', place)
    size = len(value) if isinstance(value, bytes) else None
    try:
        if isinstance(value, bytes):
            value = value.decode('utf-8')
        elif not value.isascii():
            value.encode('utf-8')
    except UnicodeDecodeError:
        return Reject('not valid UTF-8', place, size)
    except UnicodeEncodeError:
        return Reject('lone surrogate', place)
    if '\0' in value:
        return Reject('NUL character', place, size)
    return Document(value, source) if value else Reject('empty document', place, 0)


class Source:
    """A sequence of documents in an order that is always the same."""

    paired = False  # whether documents 2i and 2i + 1 are a text and what answers it

    @property
    def label(self) -> str:
        """Returns the short name under which this source's documents are reported."""
        raise NotImplementedError

    def records(self) -> Iterator[Document | Reject]:
        """Yields every document, and in its place a Reject for everything that could not be used."""
        raise NotImplementedError

    def fingerprint(self) -> str:
        """Returns 16 hex digits of the content, whatever the directory that it is in and the time it was written."""
        raise NotImplementedError

    def unchecked(self) -> list[str]:
        """Returns the names of compressed files without a checksum, which may be damaged and still give documents."""
        return []

    def documents(self) -> Iterator[Document]:
        """Yields the documents alone."""
        return (record for record in self.records() if isinstance(record, Document))

    def prefix(self, encoder) -> list[int]:
        """Returns the ids that stand before the first token of a document, see Corpus.prefix."""
        return [] if encoder.eos is None else [encoder.eos]

    def parts(self) -> tuple[tuple['Source', float], ...]:
        """Returns (leaf source, weight) pairs: a plain source is one leaf of weight 1."""
        return ((self, 1.0),)


@dataclasses.dataclass(frozen=True)
class Synthetic(Source):
    """Pseudo-text with a structure to learn, the same on every machine: `count` documents of `length` characters.

    Each word is followed by one of four others with probabilities 8, 4, 2 and 1 in 15, an entropy of 1.64 bits a word.
    Every sentence of a document begins with the same name, so that a longer context helps.
    """
    count: config.Count = 1000
    length: config.Count = 2000
    seed: int = 0

    @property
    def label(self):
        return 'synthetic'

    def records(self):
        words, followers = _language(self.seed)
        for number in range(self.count):
            yield Document(_passage(words, followers, self.length, random.Random(f'{self.seed} {number}')), self.label)

    def fingerprint(self):
        return config.fingerprint(['synthetic', self.count, self.length, self.seed])


def _language(seed):
    chance = random.Random(f'language {seed}').random
    syllables = [first + second for first in 'bdfgklmnprstvz' for second in 'aeiou']

    def pick(sequence):
        return sequence[int(chance() * len(sequence))]

    words = sorted({''.join(pick(syllables) for _ in range(1 + int(chance() * 3))) for _ in range(300)})
    return words, [[pick(range(len(words))) for _ in range(4)] for _ in words]


def _passage(words, followers, length, generator):
    name = words[int(generator.random() * len(words))].capitalize()
    text, size, word, ending = [name], len(name), 0, 0
    while size < length:
        rank = (0,) * 8 + (1,) * 4 + (2,) * 2 + (3,)
        word = followers[word][rank[int(generator.random() * 15)]]
        ending = (ending + 1) % 8
        text.append(f' {words[word]}.\n{name}' if ending == 0 else f' {words[word]}')
        size += len(text[-1])
    return ''.join(text)[:length]


@dataclasses.dataclass(frozen=True)
class Mix(Source):
    """Several sources, of which rows are drawn in proportion to `weights`; each keeps a token cache of its own."""
    sources: tuple[Source, ...]
    weights: tuple[float, ...]

    def __post_init__(self):
        if not self.sources or len(self.sources) != len(self.weights):
            raise config.Error(f'Mix has {len(self.sources)} sources and {len(self.weights)} weights; '
                               'give one weight for each source, and at least one source.')
        for weight in self.weights:
            if not 0 < weight < float('inf'):
                raise config.Error(f'weight={weight} is not a positive number; remove the source or raise its weight.')

    @property
    def label(self):
        return '+'.join(source.label for source in self.sources)

    def records(self):
        return itertools.chain.from_iterable(source.records() for source in self.sources)

    def unchecked(self):
        return [name for source in self.sources for name in source.unchecked()]

    def fingerprint(self):
        return config.fingerprint(['mix', [source.fingerprint() for source in self.sources], list(self.weights)])

    def parts(self):
        leaves = []
        for source, weight in zip(self.sources, self.weights):
            inner = source.parts()
            total = sum(share for _, share in inner)
            leaves += [(leaf, weight * share / total) for leaf, share in inner]
        return tuple(leaves)


@dataclasses.dataclass(frozen=True)
class _Part(Source):
    source: Source
    start: float
    stop: float

    def __post_init__(self):
        if self.source.paired:
            raise config.Error(f'{type(self).__name__} of pairs would part them; take it of both sources of Parallel.')
        if not 0 <= self.start < self.stop <= 1:
            raise config.Error(f'{type(self).__name__}(start={self.start}, stop={self.stop}) is not a part of [0, 1]; '
                               'choose 0 <= start < stop <= 1, such as 0.0 and 0.9.')

    @property
    def label(self):
        return self.source.label

    def unchecked(self):
        return self.source.unchecked()

    def fingerprint(self):
        return config.fingerprint([type(self).__name__.lower(), self.source.fingerprint(), self.start, self.stop])

    def parts(self):
        return tuple((dataclasses.replace(self, source=leaf), weight) for leaf, weight in self.source.parts())

    def _part_of(self, reject):
        """Returns a Reject with as much of its size as this part has of the documents."""
        return dataclasses.replace(reject, size=reject.size and reject.size * (self.stop - self.start))


@dataclasses.dataclass(frozen=True)
class Cut(_Part):
    """The characters of each document from fraction `start` to fraction `stop`; adjoining cuts share no character."""

    def records(self):
        for record in self.source.records():
            if isinstance(record, Document):
                size = len(record.text)
                text = record.text[int(size * self.start):int(size * self.stop)]
                if text:
                    yield Document(text, record.source)
            else:
                yield self._part_of(record)


@dataclasses.dataclass(frozen=True)
class Pick(_Part):
    """The documents whose number, hashed to [0, 1), falls in [`start`, `stop`): whole documents, evenly spread."""

    def records(self):
        numbers = itertools.count()
        for record in self.source.records():
            if isinstance(record, Reject):
                yield dataclasses.replace(self._part_of(record), share=record.share * (self.stop - self.start))
            elif self.start <= fraction(next(numbers)) < self.stop:
                yield record
