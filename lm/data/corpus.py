"""Text as batches: `Corpus(...).open(root).batch_at(step)`, a pure function of the corpus and the step."""

import dataclasses
import itertools
from typing import Annotated, Literal, NamedTuple

import numpy as np

from lm import config
from lm.config import checksums
from lm.data import cache, loader, order, packing, rejects, sources
from lm.data.packing import windows
from lm.tokenizers import plain

_ORDER_VERSION = 1
Packing = Literal[packing.NAMES]


@dataclasses.dataclass(frozen=True)
class Corpus:
    """What to train and validate on, and how it is cut into batches of `batch` rows of `context` predictions.

    `packing` names a module of data/packing: 'windows' (concatenate, then split), 'bestfit' (whole documents, none
    predicted from another) or 'pairs' (what a Parallel source holds). `max_rejected` is the greatest share of a source
    that training may leave out because it cannot be used. `words`: whether batches have 'begins', which tokens begin a
    word.
    """
    train: sources.Source
    valid: sources.Source | None
    tokenizer: plain.Tokenizer
    context: config.Size
    batch: config.Size
    packing: Packing = 'windows'
    seed: Annotated[int, config.Interval(0)] = 0
    max_rejected: config.Fraction = 0.1
    words: bool = False

    def __post_init__(self):
        config.check(self)

    def open(self, root, split='train'):
        """Returns the Stream of 'train', endless and shuffled, or the Pass of 'valid', once and in order.

        Builds the tokenizer, always fitted on 'train', and the token caches where `root` lacks them. Raises
        config.Error where the split is missing, or has a source shorter than one row.
        """
        splits = {'train': self.train, 'valid': self.valid}
        if split not in splits:
            raise config.Error(f'there is no split {split!r}; try {" or ".join(splits)}.')
        source = splits[split]
        if source is None:
            raise config.Error(f'the corpus has no {split} split; set data.{split} to a source.')
        for leaf, _ in source.parts():
            if leaf.paired != (self.packing == 'pairs'):
                kind, remedy = ('pairs', 'data.packing=pairs') if leaf.paired else ('no pairs', 'data.Parallel')
                raise config.Error(f'packing={self.packing} and {leaf.label} has {kind} of texts; try {remedy}.')
        encoder, caches = cache.prepare(source, self.tokenizer, root, self.train)
        return self.arrange(source, encoder, caches, split)

    def accept(self, stream, split='train'):
        """Returns a line on what a Stream or Pass was made of; raises config.Error where too much was rejected."""
        for part in stream.caches:
            reasons = part.report['rejects']
            if part.rejected > self.max_rejected:
                raise config.Error(f'{part.rejected:.1%} of {part.label} ({split}) is rejected: '
                                   f'{rejects.counts(reasons)}; {rejects.remedy(reasons)}, or allow it by '
                                   f'data.max_rejected={np.ceil(100 * part.rejected) / 100:.2f}.')
        return f'{split}: {cache.summary(stream.caches)}'

    def arrange(self, source, encoder, caches, split):
        """Returns the Stream or Pass over `caches`, one for each leaf of `source`."""
        rows = tuple(self._cut(part, encoder) for part in caches)
        sizes = np.array([part.rows for part in rows], np.int64)
        weights = [weight for _, weight in source.parts()]
        shuffled = order.Shuffled(order.schedule(weights), sizes, self.seed)
        stream = Stream(shuffled, rows, self.batch, tuple(caches), encoder,
                        self._fingerprint(source, encoder, caches, rows[0].version), prove(caches), self.words)
        return {'train': stream, 'valid': stream.once()}[split]

    def example(self, split='train'):
        """Returns a batch of zeros with the names, shapes and types that `open(root, split)` serves; reads no data."""
        documents = np.zeros(2 * self.context, np.uint16)
        bounds = np.array([0, self.context, documents.size])  # of two, as there are in a pair
        rows = packing.named(self.packing).cut(documents, bounds, self.context, True)
        batch = _gather((rows,), np.zeros(self.batch, np.int64), np.zeros(self.batch, np.int64))
        if self.words:
            batch['begins'] = batch['targets'] == 0
        return {'train': batch, 'valid': _weighted(batch)}[split]

    def prefix(self, encoder):
        """Returns the ids that training shows before the first token of a document: what to put before a prompt.

        They are the end token, of the document before, whatever the packing; none where a tokenizer has no end token.
        """
        return self.train.prefix(encoder)

    def _cut(self, part, encoder):
        if part.tokens.size <= self.context:
            raise config.Error(f'{part.label} holds {part.tokens.size} tokens, less than one row of context='
                               f'{self.context}; give it more text, or set data.context below {part.tokens.size}.')
        tokens = loader.advise(part.tokens)
        rows = packing.named(self.packing).cut(tokens, part.offsets, self.context, encoder.eos is not None,
                                               part.directory)
        if not rows.rows:
            raise config.Error(f'{part.label} has no document of 2 tokens or more; try data.packing=windows.')
        return rows

    def _fingerprint(self, source, encoder, caches, version):
        settings = {name: str(getattr(self, name)) for name in ('context', 'batch', 'packing', 'seed')}
        settings['packing'] += f' of version {version}' * (version > 1)
        parts = {f'source {number} ({part.label})': f'{leaf.fingerprint()}, weight {weight}, {part.tokens.size} tokens '
                                                    f'of {part.report["tokenizer"]}'
                 for number, ((leaf, weight), part) in enumerate(zip(source.parts(), caches))}
        return {'order': str(_ORDER_VERSION), 'tokenizer': encoder.fingerprint(), **settings, **parts}


def prove(caches):
    """Returns the checksums.Proof, under way, of the tokens of caches that are too large to be verified when opened."""
    unverified = [pair for part in caches for pair in part.unverified]
    directories = ', '.join(str(path.parent) for path, _ in unverified)
    return checksums.Proof(unverified, f'remove the directory ({directories}), and it is built again, and the '
                                       'checkpoints that this run has saved.')


class Passage(NamedTuple):
    """A piece of a document in a row of a batch: `count` of its tokens from token `start`; documents count from 0."""

    row: int
    source: str
    document: int
    start: int
    count: int
    text: str


class Text(NamedTuple):
    """A source as a pass reads it: its bytes, how many of its tokens are predicted, and how many are by none."""

    bytes: int
    predicted: int
    unpredicted: int


@dataclasses.dataclass(frozen=True, eq=False)
class Stream:
    """An endless sequence of batches: `batch_at(step)` of any step, at the same cost.

    `cuts` holds the Rows of each source, as packing modules return them. `fingerprint` maps names to what determines
    the order of the data: two streams with equal fingerprints serve the same batches. Large caches are compared with
    their checksums meanwhile, by `proof`; once one is known to be damaged, every batch raises checksums.Damaged.
    `words`: see Corpus.
    """
    order: order.Shuffled | order.Spread
    cuts: tuple
    batch: int
    caches: tuple
    encoder: object
    fingerprint: dict
    proof: checksums.Proof
    words: bool = False

    def once(self, stride=0):
        """Returns the Pass over all text: every token is predicted once, the first from what stands before documents.

        stride: the rows are windows over each document that slide by so many tokens, see windows.slide.
        """
        ended = self.encoder.eos is not None
        cuts = tuple(windows.slide(loader.advise(part.tokens), part.offsets, cut.context, ended, stride) if stride
                     else cut.whole() for part, cut in zip(self.caches, self.cuts, strict=True))
        if not any(cut.predictions for cut in cuts):
            raise config.Error(f'no token of {", ".join(self.sources)} has another before it in its document, so none '
                               'is predicted; score without a stride.')
        return Pass(order.Spread(np.array([cut.rows for cut in cuts], np.int64)), cuts, self.batch, self.caches,
                    self.encoder, self.fingerprint, self.proof, self.words)

    def verify(self):
        """Waits until all caches have been compared with their checksums; raises checksums.Damaged where one differs.
        """
        self.proof.check(wait=True)

    @property
    def sources(self):
        """The names of the sources, in the order of their numbers in a batch's 'source': labels, numbered if equal."""
        names = []
        for part in self.caches:
            others = (f'{part.label}-{number}' for number in itertools.count(2))
            names.append(next(name for name in itertools.chain([part.label], others) if name not in names))
        return tuple(names)

    @property
    def rows(self):
        """How many different rows there are: one epoch of each source, added up."""
        return int(self.order.sizes.sum())

    @property
    def batches(self):
        """How many batches it takes to hold every row once; the last one may be partly filled."""
        return -(-self.rows // self.batch)

    def batch_at(self, step, rows=None):
        """Returns the batch of `step`: 'inputs' and 'targets' int32 [B T], 'source' int32 [B].

        Packed ones also have 'segments' and 'positions' int32 and 'weights' float32, [B T]; see bestfit.Packed.gather.
        Where `words` is set there is 'begins' bool [B T]: which targets begin a word, see Encoder.begins.
        `rows`, numbers below `batch`, are the only ones read and returned; so a host asks for its share of a batch.
        """
        self.proof.check()
        batch = _gather(self.cuts, *self.order.locate(self._numbers(step, rows)))
        return batch | {'begins': self.encoder.begins[batch['targets']]} if self.words else batch

    def passages(self, step, limit=40):
        """Returns the Passages that the rows of a batch are cut from, each with the text of its first `limit` tokens.
        """
        passages, names = [], self.sources
        for row, (source, index) in enumerate(zip(*self.order.locate(self._numbers(step, None)), strict=True)):
            part = self.caches[source]
            for span in self.cuts[source].spans(int(index)):
                for document, start, count in part.within(*span):
                    ids = part.document(document)[max(start - 1, 0):start + min(count, limit)].tolist()
                    text = self.encoder.decode_after(ids[:start > 0], ids[start > 0:])
                    passages.append(Passage(row, names[source], document, start, count, text))
        return passages

    def _numbers(self, step, rows):
        rows = np.arange(self.batch) if rows is None else np.asarray(rows, np.int64)
        if step < 0 or (rows.size and not 0 <= rows.min() <= rows.max() < self.batch):
            raise config.Error(f'step={step}, rows={rows} of {self.batch}: count steps and rows from 0.')
        return step * self.batch + rows


@dataclasses.dataclass(frozen=True, eq=False)
class Pass(Stream):
    """A sequence of `batches` batches that holds every row once; the first so many hold all sources in proportion."""

    @property
    def texts(self):
        """The Text of each source."""
        return [Text(part.report['bytes'], cut.predictions, part.report['tokens'] - cut.predictions)
                for part, cut in zip(self.caches, self.cuts, strict=True)]

    @property
    def lost(self):
        """Why its tokens give no bits per byte of the text, '' where they do."""
        lost, size = (sum(part.report[name] for part in self.caches) for name in ('lost', 'bytes'))
        return f'the tokenizer is lossy: {lost:,} of {size:,} bytes are in text that it does not decode to' * (lost > 0)

    def batch_at(self, step, rows=None):
        """Returns what Stream.batch_at does, always with 'weights' float32 [B T]: 0 in rows that pad the last batch.

        The last one comes when all caches have been verified. Raises IndexError past the end.
        """
        if step >= self.batches:
            raise IndexError(f'step={step} is past the last batch, {self.batches - 1}.')
        if step == self.batches - 1:
            self.verify()
        batch = _weighted(super().batch_at(step, rows))
        present = (self._numbers(step, rows) < self.rows).astype(np.float32)
        return {**batch, 'weights': batch['weights'] * present[:, None]}


def _gather(cuts, source, index):
    """Returns the batch whose row i is row `index[i]` of `cuts[source[i]]`."""
    batch = {}
    for number in np.flatnonzero(np.bincount(source)):
        rows = np.flatnonzero(source == number)
        part = cuts[number].gather(index[rows])
        if rows.size == source.size:
            return {**part, 'source': source.astype(np.int32)}
        for name, values in part.items():
            batch.setdefault(name, np.empty((source.size, *values.shape[1:]), values.dtype))[rows] = values
    return {**batch, 'source': source.astype(np.int32)}


def _weighted(batch):
    """Returns the batch with 'weights' [B T]: its own, or float32 ones where it has none."""
    return {'weights': np.ones(batch['inputs'].shape, np.float32), **batch}
