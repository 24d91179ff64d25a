"""The permutation is one to one and keyed; the schedule keeps every source within one row of its share."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm import config
from lm.data import order


@settings(deadline=None, max_examples=100)
@given(size=st.integers(1, 3000), seed=st.integers(0, 2 ** 63), epoch=st.integers(0, 10 ** 9))
def test_permute_is_one_to_one(size, seed, epoch):
    image = order.permute(np.arange(size), size, order.key(seed, 0, epoch))
    assert np.array_equal(np.sort(image), np.arange(size))


@settings(deadline=None)
@given(size=st.integers(1, 2 ** 50), start=st.integers(0, 2 ** 50))
def test_permute_stays_inside_and_distinct_for_large_sizes(size, start):
    index = (start + np.arange(min(size, 200))) % size
    image = order.permute(index, size, order.key(0, 0, 0))
    assert image.min() >= 0 and image.max() < size
    assert np.unique(image).size == np.unique(index).size


def test_permute_takes_a_size_and_key_per_element():
    index, size, epoch = np.array([0, 5, 2, 7]), np.array([1, 9, 4, 1000]), np.array([3, 1, 0, 2])
    together = order.permute(index, size, order.key(7, [0, 1, 2, 3], epoch))
    alone = [order.permute(i, n, order.key(7, s, e))[0] for s, (i, n, e) in enumerate(zip(index, size, epoch))]
    assert together.tolist() == alone


def test_small_permutations_are_equally_likely():
    keys = order.key(0, 0, np.arange(24000))
    images = np.stack([order.permute(np.full(keys.size, i), 4, keys) for i in range(4)], axis=1)
    _, counts = np.unique(images, axis=0, return_counts=True)
    assert counts.size == 24
    assert np.abs(counts - 1000).max() < 160


def test_neighbours_are_sent_anywhere():
    image = order.permute(np.arange(100_003), 100_003, order.key(0, 0, 0))
    counts, _, _ = np.histogram2d(image[:-1], image[1:], bins=10)
    assert np.abs(counts - 1000).max() < 160


@pytest.mark.parametrize('other', [(1, 0, 0), (0, 1, 0), (0, 0, 1)])
def test_seed_source_and_epoch_each_change_the_order(other):
    index = np.arange(1000)
    first, second = (order.permute(index, 1000, order.key(*name)) for name in ((0, 0, 0), other))
    assert (first == second).mean() < 0.02


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=12))
def test_every_source_is_within_one_row_of_its_share(weights):
    plan = order.schedule(weights)
    rows = np.arange(1, 2 * plan.sources.size + 1)
    source, _ = plan.locate(rows - 1)
    for number, weight in enumerate(weights):
        exact = rows * float(Fraction(weight, sum(weights)))
        assert np.abs(np.cumsum(source == number) - exact).max() < 1


def test_shares_hold_after_a_billion_steps():
    plan = order.schedule([0.7, 0.2, 0.1])
    row = 10 ** 9 * 64 + np.arange(1000)
    source, served = plan.locate(row)
    for number, weight in enumerate([0.7, 0.2, 0.1]):
        assert np.abs(served[source == number] - weight * row[source == number]).max() < 1


@settings(deadline=None, max_examples=15)
@given(st.lists(st.floats(0.01, 1), min_size=1, max_size=6), st.integers(0, 10 ** 12))
def test_rows_of_a_source_are_numbered_without_gaps(weights, start):
    source, served = order.schedule(weights).locate(start + np.arange(500))
    for number in range(len(weights)):
        assert np.all(np.diff(served[source == number]) == 1)


def test_shares_are_exact_where_they_can_be():
    assert order.shares([0.7, 0.2, 0.1]) == [7, 2, 1]
    assert order.shares([1 / 3, 2 / 3]) == [1, 2]
    assert order.shares([5]) == [1]
    assert order.shares([3, 6]) == [1, 2]


@settings(deadline=None)
@given(st.lists(st.floats(0.001, 1), min_size=1, max_size=8))
def test_shares_are_within_a_65536th(weights):
    counts = np.array(order.shares(weights))
    assert np.abs(counts / counts.sum() - np.array(weights) / sum(weights)).max() <= 1 / 65536


@pytest.mark.parametrize('weights', [[1.0, 0.0], [1.0, -1.0], [1.0, float('nan')], [1.0, 1e-6]])
def test_weights_that_serve_nothing_are_refused(weights):
    with pytest.raises(config.Error, match='remove the source'):
        order.schedule(weights)


def test_an_epoch_holds_every_row_once_and_the_next_another_order():
    shuffled = order.Shuffled(order.schedule([1, 1]), np.array([7, 10]), seed=3)
    source, index = shuffled.locate(np.arange(40))
    second = index[source == 1].reshape(2, 10)
    assert np.array_equal(np.sort(second), np.tile(np.arange(10), (2, 1)))
    assert not np.array_equal(*second)


@settings(deadline=None)
@given(st.lists(st.integers(1, 400), min_size=1, max_size=6))
def test_a_pass_holds_every_row_once_and_of_any_beginning_every_source_its_share(sizes):
    total = sum(sizes)
    source, index = order.Spread(np.array(sizes)).locate(np.arange(total))
    starts = np.concatenate([[0], np.cumsum(sizes)])
    assert sorted((starts[source] + index).tolist()) == list(range(total))
    for number, size in enumerate(sizes):
        share = np.arange(1, total + 1) * size / total
        assert np.abs(np.cumsum(source == number) - share).max() < 5


def test_a_pass_goes_on_with_its_last_row():
    source, index = order.Spread(np.array([2, 3])).locate(np.arange(4, 9))
    assert len({*zip(source.tolist(), index.tolist())}) == 1


def test_a_tenth_of_a_pass_is_spread_over_the_text():
    _, index = order.Spread(np.array([1000])).locate(np.arange(100))
    assert np.diff(np.sort(index)).max() <= 20
