"""Sources made of others: their parts add up to the whole."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm import config, data
from lm.config.literals import Text
from lm.sweep import rules


def texts(source):
    return [document.text for document in source.documents()]


def rejects(source):
    found = [record for record in source.records() if isinstance(record, data.Reject)]
    return [(reject.reason, reject.place.rpartition('/')[2]) for reject in found]


@settings(max_examples=30)
@given(st.text(st.characters(codec='utf-8', exclude_characters='\0'), min_size=1), st.floats(0.01, 0.99))
def test_adjoining_cuts_add_up_to_the_document(tmp_path_factory, text, middle):
    path = tmp_path_factory.mktemp('cut') / 'a.jsonl'
    path.write_text(json.dumps({'text': text}))
    whole = data.Files(str(path))
    parts = [data.Cut(whole, 0.0, middle), data.Cut(whole, middle, 1.0)]
    assert ''.join(piece for part in parts for piece in texts(part)) == text
    assert parts[0].fingerprint() != parts[1].fingerprint() != whole.fingerprint()


@settings(max_examples=30)
@given(st.lists(st.floats(0.0, 1.0), max_size=3), st.integers(0, 200))
def test_picks_of_a_partition_of_the_unit_interval_partition_the_documents(borders, count):
    whole = data.Synthetic(count, 12)
    edges = sorted({0.0, 1.0, *borders})
    parts = [texts(data.Pick(whole, *edge)) for edge in zip(edges, edges[1:])]
    assert sorted(text for part in parts for text in part) == sorted(texts(whole))


def test_a_pick_holds_its_share():
    assert abs(len(texts(data.Pick(data.Synthetic(2000, 5), 0.2, 0.5))) - 600) < 60


def test_rejects_pass_through_cut_and_pick(tmp_path):
    (tmp_path / 'a.jsonl').write_text('{"text": "one"}\nbroken\n')
    source = data.Files(str(tmp_path / 'a.jsonl'))
    assert rejects(data.Cut(data.Pick(source, 0.0, 1e-9), 0.0, 0.5)) == [('broken JSON', 'a.jsonl:2')]


@pytest.mark.parametrize('start, stop', [(0.5, 0.5), (-0.1, 0.5), (0.2, 1.1), (0.9, 0.1)])
def test_ranges_outside_the_unit_interval_are_refused(start, stop):
    for part in (data.Cut, data.Pick):
        with pytest.raises(config.Error, match='is not a part of'):
            part(data.Synthetic(), start, stop)


def test_a_mix_flattens_into_weighted_leaves():
    one, two, three = (data.Synthetic(2, 10, seed) for seed in range(3))
    nested = data.Mix((one, data.Mix((two, three), (1.0, 3.0))), (2.0, 1.0))
    assert nested.parts() == ((one, 2.0), (two, 0.25), (three, 0.75))
    assert one.parts() == ((one, 1.0),)
    assert data.Cut(nested, 0.0, 0.5).parts() == tuple((data.Cut(leaf, 0.0, 0.5), w) for leaf, w in nested.parts())
    assert texts(nested) == texts(one) + texts(two) + texts(three)


@pytest.mark.parametrize('count, weights', [(2, (1.0,)), (0, ()), (1, (0.0,)), (1, (float('nan'),))])
def test_a_mix_without_a_positive_weight_for_each_source_is_refused(count, weights):
    with pytest.raises(config.Error):
        data.Mix((data.Synthetic(),) * count, weights)


def test_synthetic_text_is_reproducible_and_learnable():
    source = data.Synthetic(20, 500, seed=3)
    found = texts(source)
    assert [len(text) for text in found] == [500] * 20 and found == texts(data.Synthetic(20, 500, seed=3))
    assert len(set(found)) == 20 and set(found).isdisjoint(texts(data.Synthetic(20, 500, seed=4)))
    words = ' '.join(texts(data.Synthetic(200, 2000))).replace('\n', ' ').split()
    followers = {}
    for word, following in zip(words, words[1:]):
        followers.setdefault(word, []).append(following)
    counts = sorted(len(set(after)) for after in followers.values() if len(after) > 50)
    assert counts[len(counts) // 2] < 10 < len(set(words))


@pytest.mark.parametrize('part, key', [(data.Synthetic(), 'count'), (data.Synthetic(), 'length'),
                                       (data.SentencePiece(), 'sample'), (rules.Median(4), 'least')])
def test_a_count_is_never_negative(part, key):
    with pytest.raises(config.Error, match=f'^{key}=-5 is not an int of [01] or more|^{key}=-5 is not an int in '):
        config.override(part, {key: Text('-5')})


def test_a_glob_that_a_store_refuses_is_one_line():
    pytest.importorskip('fsspec')
    with pytest.raises(config.Error, match='^cannot read file://a.*b: Invalid pattern'):
        data.Files('file://a**b').files()
