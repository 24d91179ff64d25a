"""Tokenizers: the round trip is identity, text is never a control token, and training is reproducible."""

import sys

import numpy as np
import pytest
from encoders import COMPLETE, CONTROLS, json_file, piece_encoder, training_text
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lm import config, data
from lm.tokenizers import huggingface, plain, sentencepiece

ODD = ('a▁b ▁▁', ' \t\r\n\r\n  x', '\u200b\u00a0\u2028\u2029\x85\x0b\x0c', 'e\u0301é ﬁ Å', '😀👩‍👩‍👧‍👦🇩🇪',
       '▅ ⁇ \ufeff\ufffd', '\0\x01\x7f', '   \n \n\n\n', ''.join(CONTROLS),
       'x' * 140_000, 'word ' * 28_000, 'line\nmore\n\n' * 13_000)
complete = pytest.mark.parametrize('name', COMPLETE)


@complete
@settings(max_examples=60, deadline=None)
@given(st.text(st.characters(codec='utf-8')))
def test_any_text_survives_the_round_trip(name, text):
    encoder = COMPLETE[name]()
    ids = encoder.encode(text)
    assert encoder.decode(ids) == text
    assert ids.dtype == encoder.dtype and ids.max(initial=0) < encoder.size


@complete
@pytest.mark.parametrize('text', ODD)
def test_odd_text_survives_the_round_trip(name, text):
    encoder = COMPLETE[name]()
    assert encoder.decode(encoder.encode(text)) == text


@complete
def test_control_tokens_are_never_parsed_from_text(name):
    encoder = COMPLETE[name]()
    for text in CONTROLS:
        ids = encoder.encode(f'a{text}b {text}')
        assert encoder.decode(ids) == f'a{text}b {text}'
        assert not {encoder.eos, encoder.bos} & set(ids.tolist())
    assert encoder.decode([encoder.eos, *encoder.encode('x').tolist(), encoder.eos]) == 'x'


@complete
def test_a_batch_encodes_like_each_of_its_texts(name):
    encoder = COMPLETE[name]()
    for ids, text in zip(encoder.encode_batch(ODD[:10]), ODD, strict=False):
        np.testing.assert_array_equal(ids, encoder.encode(text))


@settings(max_examples=50)
@given(st.text(st.sampled_from('a \n'), max_size=3), st.integers(60_000, 200_000))
@example('a', 3_000_000)
@example('a ', 150_000)
@example('\n a', 150_000)
@example('a\n', 150_000)
def test_segments_add_up_and_are_bounded(unit, times):
    text = unit * times
    parts = list(plain.segments(text))
    bound = 2 ** 17 if ' ' in unit else 2 ** 21  # a cut inside of what nothing breaks changes ids
    assert ''.join(parts) == text and all(0 < len(part) <= bound for part in parts)
    assert len(text) <= bound or len(parts) > 1
    if unit == 'a\n':
        assert all(part.endswith('\n') for part in parts)
    if unit == 'a ':
        assert all(part.startswith(' ') for part in parts[1:])


def test_bytes_are_the_bytes_of_utf8():
    encoder = data.Bytes().fit((), '.')
    assert encoder.size == 258 and encoder.encode('é').tolist() == list('é'.encode())
    assert encoder.decode([0xC3]) == '\ufffd'


def test_characters_are_those_of_the_training_text(tmp_path):
    encoder = data.Chars().fit(iter(['cab\n', 'é😀']), tmp_path)
    assert encoder.characters == ('\n', 'a', 'b', 'c', 'é', '😀') and encoder.size == 6 and encoder.eos is None
    assert encoder.encode('bad\n'.replace('d', 'é')).tolist() == [2, 1, 4, 0]
    assert encoder.decode(encoder.encode('😀abc')) == '😀abc'
    for text in 'bad', 'ab\U0010ffff':
        with pytest.raises(config.Error, match='is not among the 6 characters'):
            encoder.encode(text)
    with pytest.raises(config.Error, match=r"^'x' \(U\+0078\), 'y' \(U\+0079\) are not among .*; remove them, or"):
        encoder.encode('axbyx')


def test_words_split_at_spaces_and_lines(tmp_path):
    encoder = data.Words().fit(iter([' the cat \n', 'the\u2028dog <eos>\n <unk> ']), tmp_path)
    assert encoder.words == ('<unk>', '<eos>', 'cat', 'the', 'the\u2028dog') and encoder.eos is None
    assert encoder.encode(' the  cat\n\nsat <eos> ').tolist() == [3, 2, 1, 1, 0, 0]
    assert encoder.decode([3, 2, 1, 0]) == 'the cat\n<unk>'
    assert data.Words(least=2).fit(iter(['a a b']), tmp_path / 'least').words == ('<unk>', '<eos>', 'a')


def test_fit_loads_what_it_kept(tmp_path):
    def never():
        raise AssertionError('trained again')
        yield

    for tokenizer in (data.Chars(), data.Words(), data.SentencePiece(size=400), data.HuggingFace(json_file())):
        directory = tmp_path / type(tokenizer).__name__
        first = tokenizer.fit(iter(training_text()), directory)
        again = tokenizer.fit(never(), directory)
        assert first.fingerprint() == again.fingerprint() and first.size == again.size
        np.testing.assert_array_equal(first.encode('mavu do'), again.encode('mavu do'))


@pytest.mark.parametrize('kind', ['unigram', 'bpe'])
def test_training_is_reproducible(kind, tmp_path):
    tokenizer = data.SentencePiece(size=400, kind=kind, sample=50_000)
    models = [tokenizer.fit(training_text(), tmp_path / str(turn)).model for turn in range(2)]
    assert models[0] == models[1]


def test_the_size_is_exactly_the_one_asked_for():
    for kind in ('unigram', 'bpe'):
        encoder = piece_encoder(kind)
        assert encoder.size == 512 and {encoder.bos, encoder.eos} == {1, 2}


def test_sampling_varies_with_the_text_alone():
    plain, sampled = piece_encoder('unigram'), piece_encoder('unigram', 0.3)
    text = training_text()[0][:3000]
    ids = sampled.encode(text)
    assert ids.size > plain.encode(text).size
    np.testing.assert_array_equal(ids, sampled.encode(text))
    np.testing.assert_array_equal(sampled.exact().encode(text), plain.encode(text))
    assert sampled.fingerprint() != plain.fingerprint() == sampled.exact().fingerprint()
    assert len({tuple(sampled.encode(f'{text}{number}')[:200].tolist()) for number in range(5)}) == 5


@given(st.lists(st.text(st.sampled_from('ab\n'), max_size=30), max_size=40), st.integers(1, 400))
def test_the_training_sample_is_an_ordered_part_of_the_text(texts, limit):
    kept = sentencepiece.sample_pieces(texts, limit)
    assert kept == sentencepiece.sample_pieces(texts, limit)
    everything = [text for text in texts if text]
    remaining = iter(everything)
    assert all(piece in remaining for piece in kept)
    total = sum(map(len, everything))
    assert min(total, limit) <= sum(map(len, kept)) <= limit + 30


def test_the_training_sample_cuts_long_texts_at_lines():
    text = 'some words in a line\n' * 2000
    pieces = sentencepiece.sample_pieces([text], 10 ** 9)
    assert ''.join(pieces) == text and all(piece.endswith('\n') and len(piece) <= 4000 for piece in pieces)


@pytest.mark.parametrize('size, match', [(100, 'no room'), (60_000, 'try size=')])
def test_sizes_that_cannot_be_are_refused(size, match, tmp_path):
    with pytest.raises(config.Error, match=match) as error:
        data.SentencePiece(size=size).fit(training_text(), tmp_path)
    assert '\n' not in str(error.value)
    for wrong in ({'kind': 'bep'}, {'alpha': 1.5}):
        with pytest.raises(config.Error):
            data.SentencePiece(**wrong)


def test_files_that_are_no_tokenizer_are_refused(tmp_path):
    pytest.importorskip('tokenizers')
    (tmp_path / 'bad').write_text('{"a": 1}')
    (tmp_path / 'text').write_text('hello')
    for number, (tokenizer, match) in enumerate([
            (data.SentencePiece(model=str(tmp_path / 'none')), 'cannot read'),
            (data.HuggingFace(str(tmp_path / 'none')), 'cannot read'),
            (data.HuggingFace(str(tmp_path / 'text')), 'no JSON at line 1'),
            (data.HuggingFace(str(tmp_path / 'bad')), 'no tokenizer.json'),
            (data.HuggingFace(json_file(), eos='<end>'), 'not a token')]):
        with pytest.raises(config.Error, match=match):
            tokenizer.fit((), tmp_path / str(number))
    with pytest.raises(config.Error, match='no SentencePiece model'):
        _ = data.SentencePiece(model=str(tmp_path / 'text')).fit((), tmp_path / 'x').size


def test_a_missing_extra_names_what_to_install(monkeypatch, tmp_path):
    path = json_file()
    huggingface._tokenizer.cache_clear()
    monkeypatch.setitem(sys.modules, 'tokenizers', None)
    with pytest.raises(config.Error, match=r"pip install 'lm\[hf\]'"):
        data.HuggingFace(path).fit((), tmp_path)


def test_gpt2_encodes_as_published(shared, tmp_path):
    pytest.importorskip('tokenizers')
    encoder = data.HuggingFace(str(shared / 'tokenizers' / 'gpt2_tokenizer.json.gz')).fit((), tmp_path)
    assert (encoder.size, encoder.eos) == (50257, 50256)
    for text in ODD[:9]:
        assert encoder.decode(encoder.encode(text)) == text and encoder.eos not in encoder.encode(text)
    text = (shared / 'tinyshakespeare' / 'input.txt').read_text()
    cut = int(len(text) * 0.9)
    assert [encoder.encode(part).size for part in (text[:cut], text[cut:])] == [301_966, 36_059]


def test_published_sentencepiece_models(shared, tmp_path):
    mistral = data.SentencePiece(model=str(shared / 'tokenizers' / 'mistral-v1_tokenizer.model')).fit((), tmp_path)
    assert (mistral.size, mistral.bos, mistral.eos) == (32000, 1, 2)
    for text in ('Hello  world\n\n  if x:\n\t😀 </s>', 'a line\n' * 30_000):
        assert mistral.decode(mistral.encode(text)) == text
    model = shared / 'tokenizers' / 'sentencepiece_cc_all.32000.100extra-sentencepiece.model'
    nanodo = data.SentencePiece(model=str(model)).fit((), tmp_path / 'nanodo')
    assert (nanodo.size, nanodo.bos, nanodo.eos) == (32101, 2, 1)
    assert nanodo.decode(nanodo.encode('All in all, it works.')) == 'All in all, it works.'
