"""Pairs of a source text and a target text, several in a row: what an encoder reads, and what a decoder writes."""
import dataclasses
import sys

import numpy as np

from lm import config
from lm.data.packing import Rows
from lm.data.packing.bestfit import Layout, Packed, best_fit


def cut(tokens, offsets, context, ended, directory=None):
    """Returns the Pairs of documents 2i, the source, and 2i + 1, its target, that `offsets` bound in `tokens` [N].

    A side longer than `context` is cut there, which is told. Raises config.Error where documents do not end in an end
    token, which stands before the first token of a target.
    """
    if not ended:
        raise config.Error('a target begins behind an end token and this tokenizer has none; '
                           'try data.tokenizer=Bytes or SentencePiece.')
    starts, lengths = (np.asarray(array, np.int64).reshape(-1, 2) for array in (offsets[:-1], np.diff(offsets)))
    if long := int(np.sum(lengths.max(1, initial=0) > context)):
        print(f'lm: {long:,} of {len(lengths):,} pairs are cut at context={context} tokens.', file=sys.stderr)
    lengths = np.minimum(lengths, context)
    row_of = best_fit(lengths.max(1), context)
    order = np.argsort(row_of, kind='stable')
    bounds = np.concatenate([[0], np.cumsum(np.bincount(row_of))]).astype(np.int64)
    source, target = (Packed(tokens, Layout(starts[order, side] - side, lengths[order, side].astype(np.int32), bounds),
                             context) for side in (0, 1))
    return Pairs(source, target, context)


@dataclasses.dataclass(frozen=True, eq=False)
class Pairs(Rows):
    """Rows of pairs, packed alike on both sides: piece i of a row of the target answers piece i of the source's."""

    source: Packed
    target: Packed
    context: int

    @property
    def rows(self):
        return self.target.rows

    @property
    def predictions(self):
        return self.target.predictions

    def gather(self, index):
        """Returns rows `index` [B]: those of the targets, see bestfit.Packed, and 'encoder_inputs', 'encoder_segments'
        and 'encoder_positions' int32 [B T] of the sources, whose end tokens are read too.

        A source [5 6 1] and its target [7 1], at context 4, give encoder_inputs [5 6 1 0], inputs [1 7 0 0] and targets
        [7 1 0 0].
        """
        source = self.source.gather(index)
        return {**self.target.gather(index),
                **{f'encoder_{name}': source[name] for name in ('inputs', 'segments', 'positions')}}

    def spans(self, row):
        sources = [(start - 1, stop - 1) for start, stop in self.source.spans(row)]
        return [span for pair in zip(sources, self.target.spans(row), strict=True) for span in pair]
