"""Windows over the whole stream of tokens, and how frequent each target is: what subsampling and noise go by."""
import dataclasses

import numpy as np

from lm.data.packing import Rows, windows


def cut(tokens, offsets, context, ended, directory=None):
    """Returns the Counted windows of `tokens` [N]."""
    frequency = (np.bincount(tokens) / tokens.size).astype(np.float32)
    return Counted(windows.cut(tokens, offsets, context, ended), frequency)


@dataclasses.dataclass(frozen=True, eq=False)
class Counted(Rows):
    """The rows of `windows`, with the share `frequency` [V] that each token has of the text."""
    windows: Rows
    frequency: np.ndarray

    @property
    def context(self):
        return self.windows.context

    @property
    def rows(self):
        return self.windows.rows

    @property
    def predictions(self):
        return self.windows.predictions

    def gather(self, index):
        """Returns rows `index` [B] as windows do, with 'frequency' float32 [B T] of the targets."""
        batch = self.windows.gather(index)
        return {**batch, 'frequency': self.frequency[batch['targets']]}

    def spans(self, row):
        return self.windows.spans(row)

    def whole(self):
        return Counted(self.windows.whole(), self.frequency)
