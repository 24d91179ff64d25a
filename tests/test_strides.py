from types import SimpleNamespace

import numpy as np
import pytest

from lm import config
from lm.data.sliding import Strided


def stream(lengths, batch=4):
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    tokens = np.arange(offsets[-1]) + 100
    return SimpleNamespace(caches=(SimpleNamespace(tokens=tokens, offsets=offsets),), sources=('text',),
                           tokens_per_byte=1.0, batch=batch)


@pytest.mark.parametrize('stride', [1, 3, 8])
def test_every_prediction_is_scored_once_from_a_long_context(stride):
    lengths, context = [30, 1, 2, 9, 8], 8
    given = stream(lengths)
    strided = Strided(given, context, stride)
    scored = []
    for step in range(strided.batches):
        batch = strided.batch_at(step)
        for row in range(given.batch):
            for place in np.flatnonzero(batch['weights'][row]):
                token = batch['targets'][row, place]
                scored.append(token)
                document = np.searchsorted(given.caches[0].offsets, token - 100, side='right') - 1
                before = token - 100 - given.caches[0].offsets[document]
                assert place + 1 >= min(before, context - stride + 1)
                assert np.array_equal(batch['inputs'][row, :place + 1], np.arange(token - place - 1, token))
    firsts = 100 + given.caches[0].offsets[:-1]
    assert sorted(scored) == sorted(set(range(100, 100 + sum(lengths))) - set(firsts))


def test_hosts_share_the_batch():
    strided = Strided(stream([30, 12]), 8, 4)
    whole = strided.batch_at(1)
    parts = [strided.batch_at(1, rows) for rows in np.split(np.arange(strided.batch), 2)]
    for name, value in whole.items():
        assert np.array_equal(value, np.concatenate([part[name] for part in parts]))


def test_stride_out_of_range():
    with pytest.raises(config.Error, match='stride=9 is not between 1 and context=8; try stride=4'):
        Strided(stream([30]), 8, 9)
