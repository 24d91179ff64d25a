"""batch_at: the same batches on any number of hosts and from any step, every row once an epoch, shapes as announced."""

import dataclasses
import types

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm import config, data
from lm.data import corpus as corpora
from lm.data import sources


@dataclasses.dataclass(frozen=True)
class Part:
    """A token cache in memory whose tokens are `first`, `first` + 1, ... and whose documents have `length` tokens."""
    label: str
    first: int
    size: int
    length: int = 10
    directory: str = '/nonexistent'
    unverified: tuple = ()

    @property
    def tokens(self):
        return np.arange(self.first, self.first + self.size, dtype=np.uint32)

    @property
    def offsets(self):
        return np.append(np.arange(0, self.size, self.length), self.size)

    @property
    def report(self):
        return {'documents': self.offsets.size - 1, 'bytes': 4 * self.size, 'lost': 0, 'tokens': self.size,
                'tokenizer': 'x'}


@dataclasses.dataclass(frozen=True)
class Made(sources.Source):
    """A source that stands for parts made by hand."""
    weights: tuple = (1.0,)

    def fingerprint(self):
        return 'abc'

    def parts(self):
        return tuple((self, weight) for weight in self.weights)


TWO = (Part('a', 0, 333), Part('b', 1000, 100))
ENCODER = types.SimpleNamespace(fingerprint=lambda: 'bytes', eos=None)
ENDING = types.SimpleNamespace(fingerprint=lambda: 'bytes', eos=9)


def made(**changes):
    settings_ = {'train': Made(), 'valid': Made(), 'tokenizer': data.Bytes(), 'context': 8, 'batch': 24, **changes}
    return data.Corpus(**settings_)


def stream(parts=TWO, split='train', weights=(3.0, 1.0), encoder=ENCODER, **changes):
    weights = weights[:len(parts)]
    return made(**changes).arrange(Made(weights), encoder, parts, split)


def same(one, other):
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize('packing', ['windows', 'bestfit'])
@pytest.mark.parametrize('split', ['train', 'valid'])
@pytest.mark.parametrize('rows', [range(24), range(6, 12), (0, 3, 4, 23), (5,)])
def test_some_rows_are_those_of_the_batch(packing, split, rows):
    whole = stream(packing=packing, split=split)
    for step in (0, whole.batches - 1):
        chosen = {name: values[list(rows)] for name, values in whole.batch_at(step).items()}
        assert same(whole.batch_at(step, rows), chosen)


@pytest.mark.parametrize('step, rows', [(-1, [0]), (0, [24]), (0, [-1])])
def test_steps_and_rows_out_of_range_are_refused(step, rows):
    with pytest.raises(config.Error):
        stream().batch_at(step, rows)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10 ** 9))
def test_a_batch_depends_on_its_step_alone(step):
    assert same(stream().batch_at(step), stream().batch_at(step))
    assert not same(stream().batch_at(step), stream().batch_at(step + 1))


def test_a_stream_opened_again_goes_on_where_it_was():
    straight = [stream().batch_at(step) for step in range(6)]
    again = stream()
    assert all(same(again.batch_at(step), straight[step]) for step in (5, 3, 4))


@pytest.mark.parametrize('packing', ['windows', 'bestfit'])
def test_an_epoch_serves_every_row_once_and_each_its_own_order(packing):
    one = stream((TWO[0],), packing=packing, batch=1)
    rows = np.stack([one.batch_at(step)['inputs'][0] for step in range(2 * one.rows)])
    first, second = rows[:one.rows], rows[one.rows:]
    assert np.unique(first, axis=0).shape == first.shape
    assert np.array_equal(np.unique(first, axis=0), np.unique(second, axis=0))
    assert not np.array_equal(first, second)


@pytest.mark.parametrize('share', [-0.1, 1.1, float('nan')])
def test_a_share_of_rejects_outside_the_unit_interval_is_refused(share):
    with pytest.raises(config.Error, match=f'^max_rejected={share} is no'):
        made(max_rejected=share)


def test_windows_are_runs_of_their_source():
    batch = stream().batch_at(3)
    assert np.array_equal(batch['targets'], batch['inputs'] + 1)
    assert np.array_equal(batch['inputs'], batch['inputs'][:, :1] + np.arange(8))
    assert np.array_equal(batch['source'], batch['inputs'][:, 0] // 1000)
    assert np.all(batch['inputs'][:, 0] % 1000 % 8 == 0)


def test_sources_are_mixed_by_weight():
    mixed = stream(weights=(3.0, 1.0))
    for steps in (1, 7):
        served = np.concatenate([mixed.batch_at(step)['source'] for step in range(steps)])
        assert abs(np.count_nonzero(served == 0) - 0.75 * served.size) < 1


@settings(deadline=None, max_examples=20)
@given(st.integers(9, 400), st.integers(9, 400), st.sampled_from([1, 5, 24]), st.sampled_from([ENCODER, ENDING]),
       st.sampled_from(['windows', 'bestfit']), st.sampled_from([0, 3]))
def test_the_valid_split_predicts_every_token_once(one, two, batch, encoder, packing, stride):
    parts = (Part('a', 0, one), Part('b', 1000, two))
    whole = stream(parts, 'valid', encoder=encoder, packing=packing, batch=batch).once(stride)
    batches = [whole.batch_at(step) for step in range(whole.batches)]
    assert all(values.shape[0] == batch for part in batches for values in part.values())
    scored = np.sort(np.concatenate([part['targets'][part['weights'] > 0] for part in batches]))
    first = [part.offsets[:-1] if packing == 'bestfit' or stride else part.offsets[:1] for part in parts]
    every = [np.delete(part.tokens, [] if encoder.eos else unpredicted) for part, unpredicted in zip(parts, first)]
    assert np.array_equal(scored, np.concatenate(every))
    sources = np.concatenate([part['source'][:, None] * part['weights'] for part in batches]).sum()
    assert sources == len(every[1]) and [text.predicted for text in whole.texts] == [*map(len, every)]
    assert [text.predicted + text.unpredicted for text in whole.texts] == [one, two]


def test_documents_of_one_token_under_a_stride_are_refused():
    whole = stream((Part('a', 0, 40, length=1),), 'valid', encoder=ENCODER)
    with pytest.raises(config.Error, match='no token of a has another before it in its document'):
        whole.once(3)


def test_a_split_that_is_not_there_is_named():
    corpus = data.Corpus(train=data.Synthetic(), valid=None, tokenizer=data.Bytes(), context=8, batch=1)
    with pytest.raises(config.Error, match="there is no split 'test'; try train or valid"):
        corpus.open('nowhere', 'test')


def test_the_first_batches_of_a_pass_hold_every_source_in_proportion():
    whole = stream((Part('a', 0, 8000), Part('b', 10_000, 4000), Part('c', 20_000, 800)), 'valid', (1.0, 1.0, 1.0))
    for batches in (1, 3, 20):
        first = np.concatenate([whole.batch_at(step)['source'] for step in range(batches)])
        shares = np.bincount(first, minlength=3) / first.size
        np.testing.assert_allclose(shares, np.array([8000, 4000, 800]) / 12_800, atol=3 / first.size)
    starts = whole.batch_at(0)['inputs'][:, 0]
    assert np.ptp(starts[starts < 8000]) > 6000


def test_the_valid_split_ends():
    whole = stream(split='valid')
    with pytest.raises(IndexError, match='past the last batch'):
        whole.batch_at(whole.batches)


@pytest.mark.parametrize('packing', ['windows', 'bestfit'])
@pytest.mark.parametrize('split', ['train', 'valid'])
def test_the_example_is_shaped_like_a_batch(packing, split):
    example = made(packing=packing).example(split)
    batch = stream(packing=packing, split=split).batch_at(0)
    assert {name: (values.shape, values.dtype) for name, values in example.items()} == {
        name: (values.shape, values.dtype) for name, values in batch.items()}


@pytest.mark.parametrize('packing', ['windows', 'bestfit'])
def test_a_source_shorter_than_a_row_is_refused_by_name(packing):
    with pytest.raises(config.Error, match=r'b holds 8 tokens, less than one row of context=8; .* below 8'):
        stream((TWO[0], Part('b', 0, 8)), packing=packing)


def test_documents_without_predictions_cannot_be_packed():
    with pytest.raises(config.Error, match='b has no document of 2 tokens or more'):
        stream((TWO[0], Part('b', 0, 50, length=1)), packing='bestfit')


def test_the_fingerprint_names_what_differs():
    def differing(other):
        return [name for name in mine if mine[name] != other[name]]
    mine = stream().fingerprint
    assert mine == stream().fingerprint
    assert differing(stream(seed=1).fingerprint) == ['seed']
    assert differing(stream(batch=48).fingerprint) == ['batch']
    assert differing(stream(packing='bestfit').fingerprint) == ['packing']
    assert differing(stream(weights=(3.0, 2.0)).fingerprint) == ['source 1 (b)']
    assert differing(stream((TWO[0], Part('b', 0, 101))).fingerprint) == ['source 1 (b)']


def test_a_stream_tells_its_sources_and_a_pass_their_text():
    assert stream().sources == ('a', 'b')
    assert stream(split='valid').texts == [(1332, 332, 1), (400, 99, 1)]
    assert stream().rows == 41 + 12 and stream(split='valid').rows == 42 + 13
    assert stream().batches == 3


def test_sources_of_one_name_are_numbered():
    parts = [Part(label, 1000 * number, 100) for number, label in enumerate(('a', 'a-2', 'a', 'b', 'a'))]
    assert stream(parts, weights=(1.0,) * 5).sources == ('a', 'a-2', 'a-3', 'b', 'a-4')


@pytest.mark.parametrize('changes, said', [
    ({'context': 0}, 'context=0 is not an int'), ({'batch': 0}, 'batch=0 is not an int'), ({'seed': -1}, 'seed=-1'),
    ({'batch': 10 ** 15}, 'batch=1000000000000000 is not an int'), ({'packing': 'best'}, 'packing=best is not one of')])
def test_impossible_settings_are_refused_at_once(changes, said):
    with pytest.raises(config.Error, match=said):
        made(**changes)


def test_a_missing_split_is_refused(tmp_path):
    with pytest.raises(config.Error, match=r'no valid split; set data\.valid'):
        made(valid=None).open(tmp_path, 'valid')


def test_opened_splits_serve_the_text_and_share_the_tokenizer(tmp_path):
    text = sources.Synthetic(count=20)
    corpus = made(train=data.Cut(text, 0.0, 0.9), valid=data.Cut(text, 0.9, 1.0), tokenizer=data.Chars(), context=32)
    train, valid = corpus.open(tmp_path), corpus.open(tmp_path, 'valid')
    assert train.encoder.fingerprint() == valid.encoder.fingerprint()
    served = valid.encoder.decode(valid.batch_at(0)['inputs'][0])
    assert len(served) == 32 and next(corpus.valid.documents()).text.startswith(served)
    assert same(corpus.open(tmp_path).batch_at(7), train.batch_at(7))


def test_an_opened_packing_lies_beside_its_cache(tmp_path):
    corpus = made(train=sources.Synthetic(count=20), packing='bestfit', context=32)
    train = corpus.open(tmp_path)
    assert list(train.caches[0].directory.glob('bestfit-32-*/lengths.npy'))
    assert same(corpus.open(tmp_path).batch_at(7), train.batch_at(7))


def test_gathering_over_sources_keeps_the_order_of_rows():
    cuts = stream().cuts
    source, index = np.array([1, 0, 1, 0, 0]), np.array([4, 2, 0, 1, 30])
    together = corpora._gather(cuts, source, index)
    for row in range(5):
        alone = cuts[source[row]].gather(index[row:row + 1])
        assert np.array_equal(together['inputs'][row], alone['inputs'][0])
