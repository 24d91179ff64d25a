"""Windows and packed rows: every prediction once, none across documents, and packing as tight as it should be."""

import itertools
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm.data import packing
from lm.data.packing import bestfit, cooccurrences, counted
from lm.data.packing.windows import Windows, count

documents = st.lists(st.integers(1, 40), min_size=1, max_size=60)
contexts = st.integers(1, 17)


def bounds(lengths):
    return np.concatenate([[0], np.cumsum(lengths)])


def packed(lengths, context, ended):
    """Returns Packed rows of documents whose tokens are their own addresses, counted from 1."""
    offsets = bounds(lengths)
    return bestfit.cut(np.arange(1, offsets[-1] + 1, dtype=np.uint32), offsets, context, ended)


def test_windows_share_one_token():
    batch = Windows(np.array([8, 3, 5, 1, 4, 9], np.uint16), 2, False).gather(np.array([0, 1]))
    assert batch['inputs'].tolist() == [[8, 3], [5, 1]]
    assert batch['targets'].tolist() == [[3, 5], [1, 4]]
    assert batch['inputs'].dtype == batch['targets'].dtype == np.int32


@settings(deadline=None)
@given(st.integers(0, 200), contexts, st.sampled_from([np.uint16, np.uint32]))
def test_windows_predict_every_token_but_the_first_once(tokens, context, dtype):
    windows = Windows(np.arange(tokens, dtype=dtype), context, False)
    assert windows.rows == count(tokens, context)
    assert (windows.rows + 1) * context >= tokens - 1
    if windows.rows:
        targets = windows.gather(np.arange(windows.rows))['targets']
        assert np.array_equal(targets.ravel(), np.arange(1, windows.rows * context + 1))


def test_windows_hold_ids_beyond_int16():
    batch = Windows(np.array([65535, 40000, 2], np.uint16), 2, False).gather(np.array([0]))
    assert batch['inputs'].tolist() == [[65535, 40000]]


def test_split_shares_a_token_between_pieces():
    starts, lengths = bestfit.split([0, 5, 6, 10], 3, False)
    assert starts.tolist() == [0, 3, 6]
    assert lengths.tolist() == [3, 1, 3]
    starts, lengths = bestfit.split([0, 5, 7, 10], 3, True)
    assert starts.tolist() == [-1, 2, 4, 6]
    assert lengths.tolist() == [3, 2, 2, 3]


@settings(deadline=None, max_examples=200)
@given(documents, contexts, st.booleans())
def test_every_token_is_predicted_once_from_its_own_document_or_the_end_before(lengths, context, ended):
    rows = packed(lengths, context, ended)
    if not rows.rows:
        assert max(lengths) == 1 and not ended
        return
    batch = rows.gather(np.arange(rows.rows))
    real = batch['weights'] > 0
    first, last = bounds(lengths)[:-1], bounds(lengths)[1:] - 1
    every = np.arange(1, sum(lengths) + 1)
    assert np.array_equal(np.sort(batch['targets'][real]), every if ended else np.delete(every, first))
    assert np.array_equal(np.sort(batch['inputs'][real]), every if ended else np.delete(every, last))
    assert np.array_equal(batch['targets'][real], batch['inputs'][real] % sum(lengths) + 1)
    assert rows.predictions == real.sum()


@settings(deadline=None, max_examples=50)
@given(documents, contexts, st.booleans())
def test_a_segment_is_a_run_of_one_document(lengths, context, ended):
    rows = packed(lengths, context, ended)
    document = np.repeat(np.arange(len(lengths)), lengths)
    for index in range(rows.rows):
        row = {name: values[0] for name, values in rows.gather(np.array([index])).items()}
        used = int(row['weights'].sum())
        assert all(not values[used:].any() for values in row.values())
        segments = row['segments'][:used]
        assert segments[0] == 1 and np.isin(np.diff(segments), [0, 1]).all()
        for segment in range(1, segments[-1] + 1):
            inside = np.flatnonzero(segments == segment)
            assert np.array_equal(row['positions'][inside], np.arange(inside.size))
            assert np.array_equal(row['targets'][inside], row['targets'][inside[0]] + np.arange(inside.size))
            assert np.unique(document[row['targets'][inside] - 1]).size == 1


def test_packed_rows_are_as_documented():
    tokens, offsets = np.array([8, 3, 1, 4, 1], np.uint16), [0, 3, 5]
    batch = bestfit.cut(tokens, offsets, 6, True).gather(np.array([0]))
    assert {name: values[0].tolist() for name, values in batch.items()} == {
        'inputs': [1, 8, 3, 1, 4, 0], 'targets': [8, 3, 1, 4, 1, 0], 'segments': [1, 1, 1, 2, 2, 0],
        'positions': [0, 1, 2, 0, 1, 0], 'weights': [1, 1, 1, 1, 1, 0]}
    assert {str(values.dtype) for values in batch.values()} == {'int32', 'float32'}


@settings(deadline=None)
@given(documents, contexts, st.randoms(use_true_random=False))
def test_rows_do_not_depend_on_the_batch_they_are_in(lengths, context, random):
    rows = packed(lengths, context, False)
    index = np.array([random.randrange(rows.rows) for _ in range(5)] if rows.rows else [], np.int64)
    for place, number in enumerate(index):
        alone, together = rows.gather(np.array([number])), rows.gather(index)
        assert all(np.array_equal(alone[name][0], together[name][place]) for name in alone)


def best_fit_one_by_one(lengths, context):
    """Returns the room left in each row, by the textbook: one piece at a time."""
    room = []
    for length in sorted(lengths, reverse=True):
        fitting = [row for row in range(len(room)) if room[row] >= length]
        row = min(fitting, key=room.__getitem__) if fitting else len(room)
        room[row:row + 1] = [(room + [context])[row] - length]
    return sorted(room)


@settings(deadline=None, max_examples=150)
@given(st.integers(1, 60).flatmap(lambda context: st.tuples(
    st.just(context), st.lists(st.integers(1, context), min_size=1, max_size=120))))
def test_best_fit_is_the_textbook_algorithm(case):
    context, lengths = case
    row_of = bestfit.best_fit(lengths, context)
    used = np.bincount(row_of, lengths)
    assert used.min() > 0 and used.max() <= context
    assert sorted(context - used) == best_fit_one_by_one(lengths, context)


@settings(deadline=None)
@given(st.lists(st.integers(1, 50), min_size=2, max_size=200))
def test_no_two_rows_could_be_one(lengths):
    used = np.sort(np.bincount(bestfit.best_fit(lengths, 50), lengths))
    assert used.size == 1 or used[0] + used[1] > 50


def test_padding_is_small_for_many_documents():
    lengths = np.random.default_rng(0).lognormal(4, 1.2, 20_000).astype(int) + 1
    layout = bestfit.pack(bounds(lengths), 512, False)
    assert layout.padding(512) < 0.001
    assert layout.padding(512) == pytest.approx(1 - layout.lengths.sum() / (layout.bounds.size - 1) / 512)


def test_a_layout_is_written_once_and_read_back(tmp_path, monkeypatch):
    first = bestfit.open_layout(bounds([5, 9, 2]), 4, False, tmp_path)
    monkeypatch.setattr(bestfit, 'pack', None)
    again = bestfit.open_layout(bounds([5, 9, 2]), 4, False, tmp_path)
    assert all(np.array_equal(getattr(first, name), getattr(again, name)) for name in ('starts', 'lengths', 'bounds'))
    assert len(os.listdir(tmp_path)) == 1


def test_a_layout_that_fails_to_save_leaves_nothing_and_still_serves(tmp_path, monkeypatch):
    def full(*_):
        raise OSError('no space left on device')
    monkeypatch.setattr(np, 'save', full)
    layout = bestfit.open_layout(bounds([5, 9, 2]), 4, False, tmp_path)
    assert layout.lengths.sum() == 4 + 8 + 1
    assert not os.listdir(tmp_path)


def test_another_process_may_write_the_layout_first(tmp_path, monkeypatch):
    layout = bestfit.pack(bounds([5, 9, 2]), 4, False)

    def late(offsets, context, ended):
        monkeypatch.undo()
        bestfit.open_layout(offsets, context, ended, tmp_path)
        return layout
    monkeypatch.setattr(bestfit, 'pack', late)
    assert np.array_equal(bestfit.open_layout(bounds([5, 9, 2]), 4, False, tmp_path).starts, layout.starts)
    assert len(os.listdir(tmp_path)) == 1


@pytest.mark.parametrize('ended', [False, True])
@pytest.mark.parametrize('name', [name for name in packing.NAMES if name != 'pairs'])  # see test_encoder_decoder
def test_every_packing_of_the_folder_answers_alike(name, ended):
    assert packing.NAMES == ('bestfit', 'cooccurrences', 'counted', 'pairs', 'windows')
    tokens, offsets = np.arange(20, dtype=np.uint16), np.array([0, 9, 20])
    for rows in (cut := packing.named(name).cut(tokens, offsets, 4, ended)), cut.whole():
        batch = rows.gather(np.arange(rows.rows))
        assert batch['inputs'].shape == batch['targets'].shape == (rows.rows, 4)
        scored = batch.get('weights', np.ones((rows.rows, 4))) > 0
        assert rows.predictions == scored.sum() >= 16
        for row in range(rows.rows):
            spans = np.concatenate([tokens[start:stop] for start, stop in rows.spans(row)])
            assert set(batch['targets'][row][scored[row]]) <= set(spans)
    if name == 'cooccurrences':  # its targets are not what comes next
        return
    first, second = (batch['inputs'][scored & (batch['targets'] == token)].tolist() for token in (0, 9))
    assert first == [19] * ended and second == [8] * (ended or name in ('counted', 'windows'))


def test_counted_windows_know_how_frequent_their_targets_are():
    tokens = np.array([2, 0, 2, 2, 1, 0, 2], np.uint16)
    rows = counted.cut(tokens, np.array([0, 7]), 3, True)
    batch = rows.gather(np.array([1]))
    assert batch['targets'].tolist() == [[1, 0, 2]] and batch['inputs'].tolist() == [[2, 1, 0]]
    np.testing.assert_allclose(batch['frequency'], [[1 / 7, 2 / 7, 4 / 7]], rtol=1e-6)
    whole = rows.whole().gather(np.arange(rows.whole().rows))
    scored = whole['weights'] > 0
    assert whole['targets'][scored].tolist() == tokens.tolist()
    np.testing.assert_allclose(whole['frequency'][scored], np.bincount(tokens)[tokens] / 7, rtol=1e-6)


def test_cooccurrences_are_those_of_a_count_by_hand():
    """Every ordered pair of places of a document, at most 10 apart, adds one over its distance."""
    rng = np.random.default_rng(0)
    tokens, offsets = rng.integers(0, 6, 60).astype(np.uint16), np.array([0, 25, 31, 60])
    expected = {}
    for start, stop in itertools.pairwise(offsets):
        for i in range(start, stop):
            for j in range(start, stop):
                if 0 < abs(i - j) <= 10:
                    pair = int(tokens[i]), int(tokens[j])
                    expected[pair] = expected.get(pair, 0) + 1 / abs(i - j)
    rows = cooccurrences.cut(tokens, offsets, 1, True)
    batch = rows.gather(np.arange(rows.rows))
    pairs = list(zip(batch['inputs'][:, 0].tolist(), batch['targets'][:, 0].tolist(), strict=True))
    assert len(pairs) == len(set(pairs)) and set(pairs) == set(expected) and pairs != sorted(pairs)
    np.testing.assert_allclose(batch['counts'][:, 0], [expected[pair] for pair in pairs], rtol=1e-6)
    again = cooccurrences.cut(tokens, offsets, 1, True)
    assert np.array_equal(again.inputs, rows.inputs) and np.array_equal(again.counts, rows.counts)
