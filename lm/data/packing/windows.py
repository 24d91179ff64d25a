"""Windows over the whole stream of tokens: concatenate, then split. Documents are not told apart."""
import dataclasses

import numpy as np
from numpy.lib.stride_tricks import as_strided


def cut(tokens, offsets, context, directory=None):
    """Returns the Windows of `tokens` [N]."""
    return Windows(tokens, context)


def prefix(encoder):
    """Returns the end token of the document before, [] where documents are not separated (Chars, Words)."""
    return [] if encoder.eos is None else [encoder.eos]


def count(tokens, context):
    """Returns how many windows a stream of `tokens` tokens holds.

    Window i covers tokens [i * context, i * context + context + 1): neighbours share one token, so that every token
    but the first is predicted once. What is left at the end is dropped.
    """
    return max(0, (tokens - 1) // context)


@dataclasses.dataclass(frozen=True, eq=False)
class Windows:
    """The rows of `tokens` [N] by concat-and-split: document ends are ordinary tokens."""
    tokens: np.ndarray
    context: int

    @property
    def rows(self):
        """How many rows there are."""
        return count(self.tokens.size, self.context)

    def gather(self, index):
        """Returns rows `index` [B] as 'inputs' and 'targets', int32 [B T].

        Splits [8 3 5 1] into inputs [8 3 5] and targets [3 5 1].
        """
        width = self.tokens.itemsize
        shape, strides = (self.rows, self.context + 1), (self.context * width, width)
        block = as_strided(self.tokens, shape, strides, writeable=False)[index]
        return {'inputs': block[:, :-1].astype(np.int32), 'targets': block[:, 1:].astype(np.int32)}

    def spans(self, row):
        """Returns [(start, stop)] of the stretches of tokens that one row is cut from."""
        return [(row * self.context, (row + 1) * self.context + 1)]
