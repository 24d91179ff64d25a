"""Windows that slide over documents: every token scored once, from a long context of its own document."""
import numpy as np
import pytest

from lm import config
from lm.data.packing import windows


def slid(lengths, context, ended, stride):
    """Returns (Sliding rows of documents of these lengths whose tokens are 100, 101, ..., their offsets)."""
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return windows.slide(np.arange(offsets[-1]) + 100, offsets, context, ended, stride), offsets


@pytest.mark.parametrize('ended', [False, True])
@pytest.mark.parametrize('stride', [1, 3, 8])
def test_every_prediction_is_scored_once_from_a_long_context(stride, ended):
    lengths, context = [30, 1, 2, 9, 8], 8
    rows, offsets = slid(lengths, context, ended, stride)
    batch, scored = rows.gather(np.arange(rows.rows)), []
    for row, place in np.argwhere(batch['weights']):
        token = batch['targets'][row, place]
        scored.append(token)
        before = token - 100 - offsets[np.searchsorted(offsets, token - 100, side='right') - 1] + ended
        assert place + 1 >= min(before, context - stride + 1)
        expected = (np.arange(token - place - 1, token) - 100) % sum(lengths) + 100  # the last ends the first's context
        assert np.array_equal(batch['inputs'][row, :place + 1], expected)
    unpredicted = set() if ended else set(100 + offsets[:-1])
    assert sorted(scored) == sorted(set(range(100, 100 + sum(lengths))) - unpredicted)
    assert rows.predictions == len(scored)


@pytest.mark.parametrize('ended', [False, True])
@pytest.mark.parametrize('size', [9, 16, 17, 18, 40])
def test_the_windows_of_a_pass_predict_every_token(size, ended):
    whole = windows.cut(np.arange(size) + 100, [0, size], 8, ended).whole()
    batch = whole.gather(np.arange(whole.rows))
    assert batch['targets'][batch['weights'] > 0].tolist() == list(range(100 + (not ended), 100 + size))
    assert (batch['inputs'][0, 0] == 99 + size) == ended and whole.rows == -(-(size - (not ended)) // 8)


def test_stride_out_of_range():
    with pytest.raises(config.Error, match='stride=9 is not between 1 and context=8; try stride=4'):
        slid([30], 8, False, 9)
