"""Prefetching of batches by a background thread or by grain, and the throughput of a stream."""

import collections
import concurrent.futures
import itertools
import mmap
import os
import time

import numpy as np


def prefetch(batch_at, start, depth=2):
    """Yields (step, batch_at(step)) for step = `start`, `start` + 1, ..., computed up to `depth` ahead by one thread.

    An exception in the thread is raised at the step that caused it; the thread ends when the consumer stops.
    """
    executor = concurrent.futures.ThreadPoolExecutor(1, 'prefetch')
    try:
        pending = collections.deque(executor.submit(batch_at, step) for step in range(start, start + depth))
        for step in itertools.count(start):
            batch = pending.popleft().result()
            pending.append(executor.submit(batch_at, step + depth))
            yield step, batch
    finally:
        executor.shutdown(cancel_futures=True)


class _Batches:
    """The batches of steps [start, stop) as grain's RandomAccessDataSource: element i is batch_at(start + i)."""

    def __init__(self, batch_at, start, stop):
        self.batch_at, self.start, self.stop = batch_at, start, stop

    def __len__(self):
        return self.stop - self.start

    def __getitem__(self, index):
        return self.batch_at(self.start + int(index))


def as_grain(batch_at, start, stop, threads=8):
    """Returns a grain.IterDataset of batch_at(step) for step in [`start`, `stop`), in order, read by `threads` threads.

    It costs 50 us a batch, which pays where reads wait, on cold or remote files; `prefetch` is enough otherwise.
    """
    import grain
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
    return grain.MapDataset.source(_Batches(batch_at, start, stop)).to_iter_dataset(options)


def advise(tokens):
    """Returns a np.memmap as a plain array, without read-ahead (MADV_RANDOM) where the file is larger than the memory.

    Each random row of such a file would otherwise read 128 KB of neighbours, which are evicted before they are used.
    """
    mapping = getattr(tokens, '_mmap', None)
    memory = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
    if mapping is not None and tokens.nbytes > memory and hasattr(mmap, 'MADV_RANDOM'):
        mapping.madvise(mmap.MADV_RANDOM)
    return tokens.view(np.ndarray)


def measure(stream, steps):
    """Returns the tokens per second of `stream.batch_at` alone, measured over `steps` steps after one to warm up."""
    tokens = stream.batch_at(0)['inputs'].size
    began = time.perf_counter()
    for step in range(1, steps + 1):
        stream.batch_at(step)
    return steps * tokens / (time.perf_counter() - began)
