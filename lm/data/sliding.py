"""Sliding windows for evaluation: they overlap, so that every token is predicted from a long context."""
import numpy as np

from lm import config


class Strided:
    """The documents of a Pass under windows of `context` tokens that slide by `stride`; read like the Pass itself.

    A document of n tokens has n - 1 predictions. Each is scored once: in the first window that reaches it, from at
    least context - stride tokens unless the document begins later than that (Press et al. 2020, arXiv:2012.15832).
    """

    def __init__(self, stream, context, stride):
        if not 1 <= stride <= context:
            raise config.Error(f'stride={stride} is not between 1 and context={context}; try stride={context // 2}.')
        self.caches, self.sources, self.tokens_per_byte = stream.caches, stream.sources, stream.tokens_per_byte
        self.batch, self.context, self.stride = stream.batch, context, stride
        tables = [_windows(part.offsets, context, stride) for part in stream.caches]
        self.source = np.repeat(np.arange(len(tables)), [len(table) for table in tables])
        self.rows = np.concatenate(tables)
        self.batches = -(-len(self.rows) // self.batch)

    def batch_at(self, step, rows=None):
        """Returns 'inputs', 'targets' int32, 'weights' float32 [B T], 'source' int32 [B]; rows past the end weigh 0."""
        numbers = step * self.batch + (np.arange(self.batch) if rows is None else np.asarray(rows))
        tokens = np.zeros((numbers.size, self.context + 1), np.int32)
        weights = np.zeros((numbers.size, self.context), np.float32)
        source = np.zeros(numbers.size, np.int32)
        for i in np.flatnonzero(numbers < len(self.rows)):
            start, stop, scored = self.rows[numbers[i]]
            source[i] = self.source[numbers[i]]
            tokens[i, :stop - start] = self.caches[source[i]].tokens[start:stop]
            weights[i, scored - start - 1:stop - start - 1] = 1
        return {'inputs': tokens[:, :-1], 'targets': tokens[:, 1:], 'weights': weights, 'source': source}


def _windows(offsets, context, stride):
    """Returns [rows 3]: where each window starts and stops among the tokens, and the first token that it scores."""
    first, last = offsets[:-1], offsets[1:]
    long = last - first >= 2
    first, last = first[long], last[long]
    count = 1 + np.maximum(0, -(-(last - first - 1 - context) // stride))
    number = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
    first, last = np.repeat(first, count), np.repeat(last, count)
    start = first + number * stride
    scored = np.where(number == 0, start + 1, start + 1 + context - stride)
    return np.stack([start, np.minimum(start + context + 1, last), scored], axis=1)
