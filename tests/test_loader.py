"""Batches ahead of time are the same batches in the same order, and the thread never outlives its consumer."""

import itertools
import threading
import types

import numpy as np
import pytest

from lm.data import loader


def count(step):
    return {'inputs': np.full((2, 3), step)}


def prefetching():
    return [thread for thread in threading.enumerate() if thread.name.startswith('prefetch')]


def test_prefetch_serves_every_step_in_order_from_its_start():
    served = list(itertools.islice(loader.prefetch(count, 5), 20))
    assert [step for step, _ in served] == list(range(5, 25))
    assert all((batch['inputs'] == step).all() for step, batch in served)


def test_prefetch_computes_ahead_but_no_further_than_its_depth():
    asked, ahead = [], threading.Event()

    def batch_at(step):
        asked.append(step)
        if step == 2:
            ahead.set()
        return step
    batches = loader.prefetch(batch_at, 0, depth=2)
    assert next(batches) == (0, 0)
    assert ahead.wait(10)
    assert asked == [0, 1, 2]
    batches.close()


def test_an_error_arrives_at_its_step_and_ends_the_thread():
    def batch_at(step):
        if step == 3:
            raise OSError('disk on fire')
        return step
    batches = loader.prefetch(batch_at, 0)
    assert [next(batches)[0] for _ in range(3)] == [0, 1, 2]
    with pytest.raises(OSError, match='disk on fire'):
        next(batches)
    assert not prefetching()


def test_the_thread_ends_when_the_consumer_stops():
    for step, _ in loader.prefetch(count, 0):
        if step == 2:
            break
    assert not prefetching()


def test_grain_serves_the_same_batches_in_order():
    pytest.importorskip('grain')
    served = [int(batch['inputs'][0, 0]) for batch in loader.as_grain(count, 4, 40)]
    assert served == list(range(4, 40))


def test_mapped_tokens_become_a_plain_array_without_a_copy(tmp_path):
    np.arange(10, dtype=np.uint16).tofile(tmp_path / 'tokens.bin')
    mapped = np.memmap(tmp_path / 'tokens.bin', np.uint16, 'r')
    plain = loader.advise(mapped)
    assert type(plain) is np.ndarray and np.shares_memory(plain, mapped)


def test_files_larger_than_memory_are_read_without_read_ahead(tmp_path, monkeypatch):
    asked = []
    tokens = np.zeros(1000, np.uint16).view(type('Mapped', (np.ndarray,), {}))
    tokens._mmap = types.SimpleNamespace(madvise=asked.append)
    loader.advise(tokens)
    assert not asked
    monkeypatch.setattr(loader.os, 'sysconf', lambda name: 1)
    loader.advise(tokens)
    assert asked == [loader.mmap.MADV_RANDOM]


def test_measure_counts_the_tokens_of_the_steps_it_times(monkeypatch):
    clock = iter([10.0, 12.0])
    monkeypatch.setattr(loader.time, 'perf_counter', lambda: next(clock))
    assert loader.measure(types.SimpleNamespace(batch_at=count), 4) == 4 * 6 / 2.0
