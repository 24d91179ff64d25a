"""Windows over the whole stream of tokens: concatenate, then split. Documents are not told apart."""
import dataclasses

import numpy as np
from numpy.lib.stride_tricks import as_strided

from lm import config
from lm.data.packing import Rows


def cut(tokens, offsets, context, ended, directory=None):
    """Returns the Windows of `tokens` [N]."""
    return Windows(tokens, context, ended)


def count(tokens, context):
    """Returns how many windows a stream of `tokens` tokens holds.

    Window i covers tokens [i * context, i * context + context + 1): neighbours share one token, so that every token
    but the first is predicted once. What is left at the end is dropped.
    """
    return max(0, (tokens - 1) // context)


@dataclasses.dataclass(frozen=True, eq=False)
class Windows(Rows):
    """The rows of `tokens` [N] by concat-and-split: document ends are ordinary tokens."""
    tokens: np.ndarray
    context: int
    ended: bool

    @property
    def rows(self):
        return count(self.tokens.size, self.context)

    @property
    def predictions(self):
        return self.rows * self.context

    def gather(self, index):
        """Returns rows `index` [B] as 'inputs' and 'targets', int32 [B T].

        Splits [8 3 5 1] into inputs [8 3 5] and targets [3 5 1].
        """
        width = self.tokens.itemsize
        shape, strides = (self.rows, self.context + 1), (self.context * width, width)
        block = as_strided(self.tokens, shape, strides, writeable=False)[index]
        return {'inputs': block[:, :-1].astype(np.int32), 'targets': block[:, 1:].astype(np.int32)}

    def spans(self, row):
        return [(row * self.context, (row + 1) * self.context + 1)]

    def whole(self):
        return slide(self.tokens, np.array([0, self.tokens.size]), self.context, self.ended, self.context)


@dataclasses.dataclass(frozen=True, eq=False)
class Sliding(Rows):
    """Windows that may overlap: `windows` [rows 3] has where each starts and stops among `tokens` [N], and the first
    token that it scores; -1 is the last token of all.
    """
    tokens: np.ndarray
    windows: np.ndarray
    context: int

    @property
    def rows(self):
        return len(self.windows)

    @property
    def predictions(self):
        return int(np.sum(self.windows[:, 1] - self.windows[:, 2]))

    def gather(self, index):
        """Returns rows `index` [B]: 'inputs', 'targets' int32, 'weights' float32 [B T], 0 where nothing is scored."""
        start, stop, scored = self.windows[index].T[:, :, None]
        at = start + np.arange(self.context + 1)
        tokens = np.where(at < stop, np.take(self.tokens, at, mode='wrap'), 0).astype(np.int32)
        weights = ((at >= scored) & (at < stop)).astype(np.float32)
        return {'inputs': tokens[:, :-1], 'targets': tokens[:, 1:], 'weights': weights[:, 1:]}

    def spans(self, row):
        start, stop, _ = self.windows[row].tolist()
        return [(max(start, 0), stop)]


def slide(tokens, offsets, context, ended, stride):
    """Returns the Sliding windows over each document that `offsets` bound in `tokens` [N].

    Every token is scored once, but for the first of a document where none is `ended`: in the first window that reaches
    it, from at least context - stride tokens unless the document begins later than that (Press et al. 2020,
    arXiv:2012.15832).
    """
    if not 1 <= stride <= context:
        raise config.Error(f'stride={stride} is not between 1 and context={context}; try stride={context // 2}.')
    first, last = np.asarray(offsets[:-1]) - ended, np.asarray(offsets[1:])
    long = last - first >= 2
    first, last = first[long], last[long]
    number = 1 + np.maximum(0, -(-(last - first - 1 - context) // stride))
    order = np.arange(number.sum()) - np.repeat(np.cumsum(number) - number, number)
    first, last = np.repeat(first, number), np.repeat(last, number)
    start = first + order * stride
    scored = np.where(order == 0, start + 1, start + 1 + context - stride)
    return Sliding(tokens, np.stack([start, np.minimum(start + context + 1, last), scored], axis=1), context)
