"""Whole documents packed into rows by best-fit decreasing; none is predicted from another."""

import bisect
import dataclasses
import os
import pathlib
import shutil
import sys
import tempfile
from functools import partial

import numpy as np

from lm.config import checksums
from lm.data.packing import Rows

_VERSION = 2


def cut(tokens, offsets, context, ended, directory=None):
    """Returns the Packed rows of the documents that `offsets` bound in `tokens` [N]; `directory` keeps their Layout."""
    make = pack if directory is None else partial(open_layout, directory=directory)
    return Packed(tokens, make(offsets, context, ended), context)


def split(offsets, context, ended):
    """Returns the first tokens (int64) and prediction counts (int32) of the pieces of documents that are packed.

    `offsets` [documents + 1] bounds the documents. One of n tokens has n predictions, its first from the end token
    before it, at offset - 1; without end tokens n - 1, and the first is not predicted. More than `context` of them are
    split into full pieces and a rest, which share a token as windows do: a document of 4 tokens, the end token among
    them, gives pieces of 3 and 1 at context 3. One without predictions gives none.
    """
    offsets = np.asarray(offsets, np.int64) - ended
    predictions = np.maximum(np.diff(offsets) - (not ended), 0)
    counts = -(-predictions // context)
    order = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    done = order * context
    lengths = np.minimum(np.repeat(predictions, counts) - done, context)
    return np.repeat(offsets[:-1], counts) + done, lengths.astype(np.int32)


def best_fit(lengths, context):
    """Returns the row that each piece goes to, int64 [pieces]: best-fit decreasing, rows of `context` slots.

    Pieces are taken from the longest to the shortest, each into the row with the least room that still holds it.
    Pieces of one length, and rows with one amount of room, are handled together: a million pieces take a second.
    Source: Ding et al., 'Fewer Truncations Improve Language Modeling' (2024). Lengths are in [1, context].
    """
    lengths = np.asarray(lengths)
    order = np.argsort(-lengths, kind='stable')
    sizes, starts = np.unique(-lengths[order], return_index=True)
    row_of = np.empty(lengths.size, np.int64)
    space = _Space()
    for size, pieces in zip((-sizes).tolist(), np.split(order, starts[1:])):
        while pieces.size:
            room, rows = space.take(size, pieces.size, context)
            per_row = room // size
            row_of[pieces[:rows.size * per_row]] = np.repeat(rows, per_row)[:pieces.size]
            unused = max(0, rows.size * per_row - pieces.size)
            space.add(room - per_row * size, rows[:-1] if unused else rows)
            space.add(room - (per_row - unused) * size, rows[-1:] if unused else rows[:0])
            pieces = pieces[rows.size * per_row:]
    return row_of


class _Space:
    """The rows opened so far, by the room left in them."""

    def __init__(self):
        self.opened = 0
        self.rooms = []
        self.rows = {}

    def take(self, size, pieces, context):
        """Removes and returns (room, rows): the tightest rows that hold `size`, no more than `pieces` need."""
        place = bisect.bisect_left(self.rooms, size)
        if place == len(self.rooms):
            need = -(-pieces // (context // size))
            self.opened += need
            return context, np.arange(self.opened - need, self.opened)
        room = self.rooms[place]
        need = -(-pieces // (room // size))
        rows = np.concatenate(self.rows[room])
        self.rows[room] = [rows[need:]]
        if need >= rows.size:
            del self.rows[room], self.rooms[place]
        return room, rows[:need]

    def add(self, room, rows):
        """Takes back `rows` with `room` left in each; full ones are forgotten."""
        if room and rows.size:
            if room not in self.rows:
                bisect.insort(self.rooms, room)
                self.rows[room] = []
            self.rows[room].append(rows)


@dataclasses.dataclass(frozen=True, eq=False)
class Layout:
    """Where the pieces lie: row r holds pieces [bounds[r], bounds[r + 1]).

    `starts` int64 and `lengths` int32 [pieces] are in tokens, `bounds` is int64 [rows + 1].
    """
    starts: np.ndarray
    lengths: np.ndarray
    bounds: np.ndarray

    def padding(self, context):
        """Returns the share of slots that hold no prediction, in [0, 1)."""
        return 1.0 - self.lengths.sum(dtype=np.int64) / (max(1, self.bounds.size - 1) * context)


def pack(offsets, context, ended):
    """Returns the Layout of the documents bounded by `offsets` [documents + 1] in rows of `context` predictions."""
    starts, lengths = split(offsets, context, ended)
    row_of = best_fit(lengths, context)
    order = np.argsort(row_of, kind='stable')
    bounds = np.concatenate([[0], np.cumsum(np.bincount(row_of))]).astype(np.int64)
    return Layout(starts[order], lengths[order], bounds)


def open_layout(offsets, context, ended, directory):
    """Returns `pack(offsets, context, ended)`, kept as .npy files in a subdirectory of `directory` named by context.

    They are written to a temporary name, sealed and renamed; where that is impossible the layout lives in memory only.
    What is damaged is packed again.
    """
    path = pathlib.Path(directory, f'bestfit-{context}-v{_VERSION}')
    try:
        if os.path.lexists(path):
            return _load(path)
    except checksums.Damaged as fault:
        print(f'lm: {fault.fact}; the rows are packed again.', file=sys.stderr, flush=True)
        shutil.rmtree(path, ignore_errors=True)
    layout = pack(offsets, context, ended)
    try:
        _save(layout, path)
        return _load(path)
    except (OSError, checksums.Damaged):
        return layout


def _load(path):
    names = [field.name for field in dataclasses.fields(Layout)]
    checksums.verify(path, [f'{name}.npy' for name in names], f'remove {path}, and it is made again.')
    return Layout(*(np.load(path / f'{name}.npy', mmap_mode='r').view(np.ndarray) for name in names))


def _save(layout, path):
    temporary = pathlib.Path(tempfile.mkdtemp(prefix=f'{path.name}.tmp-', dir=path.parent))
    try:
        for name, array in vars(layout).items():
            np.save(temporary / f'{name}.npy', array)
        checksums.seal(temporary)
        temporary.rename(path)
    except OSError:
        shutil.rmtree(temporary, ignore_errors=True)
        if not path.is_dir():
            raise


@dataclasses.dataclass(frozen=True, eq=False)
class Packed(Rows):
    """The rows of `tokens` [N] in which `layout` packs whole documents; none is predicted from another."""
    tokens: np.ndarray
    layout: Layout
    context: int
    version = _VERSION

    @property
    def rows(self):
        return self.layout.bounds.size - 1

    @property
    def predictions(self):
        return int(self.layout.lengths.sum(dtype=np.int64))

    def gather(self, index):
        """Returns rows `index` [B]: 'inputs', 'targets', 'segments', 'positions' int32, 'weights' float32, all [B T].

        Segments number a row's documents from 1 and positions count from 0 in each; padding is 0 in all five.
        Documents [8 3 1] and [4 1] that end in 1, at context 6, give inputs [1 8 3 1 4 0], targets [8 3 1 4 1 0],
        segments [1 1 1 2 2 0], positions [0 1 2 0 1 0] and weights [1 1 1 1 1 0].
        """
        starts, lengths, numbers = self._pieces(index)
        begins = np.cumsum(lengths) - lengths
        slots = np.arange(len(index) * self.context)
        where = slots + np.repeat(starts - begins, lengths)
        batch = {'inputs': np.take(self.tokens, where, mode='wrap').astype(np.int32),
                 'targets': np.take(self.tokens, where + 1, mode='wrap').astype(np.int32),
                 'segments': np.repeat(numbers.astype(np.int32), lengths),
                 'positions': slots.astype(np.int32) - np.repeat(begins.astype(np.int32), lengths)}
        padding = np.flatnonzero(batch['segments'] == 0)
        batch['weights'] = np.ones(slots.size, np.float32)
        for values in batch.values():
            values[padding] = 0
        return {name: values.reshape(len(index), self.context) for name, values in batch.items()}

    def spans(self, row):
        """Returns [(start, stop)] of the stretches of tokens that one row predicts."""
        pieces = slice(*self.layout.bounds[row:row + 2])
        starts, lengths = self.layout.starts[pieces], self.layout.lengths[pieces]
        return [(start + 1, start + length + 1) for start, length in zip(starts.tolist(), lengths.tolist())]

    def _pieces(self, index):
        """Returns starts, lengths and segment numbers of the pieces of rows `index`; one of number 0 fills each row."""
        first = self.layout.bounds[index]
        counts = self.layout.bounds[np.asarray(index) + 1] - first + 1
        ends = np.cumsum(counts)
        numbers = np.arange(1, ends[-1] + 1) - np.repeat(ends - counts, counts)
        numbers[ends - 1] = 0
        piece = np.repeat(first, counts) + numbers - 1
        piece[ends - 1] = 0
        starts, lengths = self.layout.starts[piece], self.layout.lengths[piece].astype(np.int64)
        starts[ends - 1] = lengths[ends - 1] = 0
        lengths[ends - 1] = self.context - np.add.reduceat(lengths, ends - counts)
        return starts, lengths, numbers
