"""Prompt and continuation read as one text, and a prompt begins as training shows documents, for every tokenizer."""
import dataclasses
import io
import tempfile

import jax
import numpy as np
import pytest
from encoders import COMPLETE, json_file

from lm import data, generate
from lm.commands import data as command
from lm.tokenizers.sentencepiece import PieceEncoder


def saved(tokenizer):
    """Returns the Encoder of a `tokenizers.Tokenizer` with an end token."""
    tokenizer.add_special_tokens(['</s>'])
    path = f'{tempfile.mkdtemp()}/tokenizer.json'
    tokenizer.save(path)
    return data.HuggingFace(path).fit((), tempfile.mkdtemp())


LINES = ['The game was 12 to 3.', 'She said: the game, was it long?'] * 50


def word_pieces():
    """Returns the Encoder of BERT's kind of tokenizer.json: it lower-cases, and a word that begins has no mark."""
    hf = pytest.importorskip('tokenizers')
    tokenizer = hf.Tokenizer(hf.models.WordPiece(unk_token='[UNK]'))
    tokenizer.normalizer = hf.normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = hf.pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = hf.decoders.WordPiece()
    tokenizer.train_from_iterator(LINES, hf.trainers.WordPieceTrainer(vocab_size=200, special_tokens=['[UNK]'],
                                                                      show_progress=False))
    return saved(tokenizer)


def llama_pieces():
    """Returns the Encoder of Llama 2's kind of tokenizer.json: a space before every text, which decoding drops."""
    hf = pytest.importorskip('tokenizers')
    tokenizer = hf.Tokenizer(hf.models.BPE())
    tokenizer.normalizer = hf.normalizers.Sequence([hf.normalizers.Prepend('▁'), hf.normalizers.Replace(' ', '▁')])
    tokenizer.pre_tokenizer = hf.pre_tokenizers.Split('▁', 'merged_with_next')
    tokenizer.decoder = hf.decoders.Sequence([hf.decoders.Replace('▁', ' '), hf.decoders.Fuse(),
                                              hf.decoders.Strip(' ', 1, 0)])
    tokenizer.train_from_iterator(LINES, hf.trainers.BpeTrainer(vocab_size=120, show_progress=False))
    return saved(tokenizer)


def dummy_pieces():
    """Returns the Encoder of the usual kind of SentencePiece model, with a space before every text."""
    sentencepiece, written = pytest.importorskip('sentencepiece'), io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(LINES), model_writer=written, vocab_size=60,
                                             minloglevel=2, hard_vocab_limit=False)
    return PieceEncoder(written.getvalue())


CONTINUED = {**{name: COMPLETE[name] for name in ('bytes', 'unigram', 'bpe', 'json')}, 'wordpiece': word_pieces,
             'llama': llama_pieces, 'dummy prefix': dummy_pieces,
             'words': lambda: data.Words().fit(iter(LINES), tempfile.mkdtemp()),
             'chars': lambda: data.Chars().fit(iter(LINES), tempfile.mkdtemp())}


class Recital:
    """A model that says the tokens that are its parameters, one after the other."""
    limit, ahead = 0, 0
    continues = True

    def __init__(self, vocab):
        self.vocab = vocab

    def prefill(self, params, tokens, lengths, slots):
        return jax.nn.one_hot(params[:1].repeat(len(lengths)), self.vocab), {'length': lengths, 'said': 0 * lengths}

    def decode(self, params, tokens, cache):
        said = cache['said'] + 1
        return jax.nn.one_hot(params[said], self.vocab), {'length': cache['length'] + 1, 'said': said}


def recited(encoder, prompt, whole, **options):
    """Returns the Sample of a model that goes on after a prompt as `whole` does, and all texts on the way to it."""
    known, ids = encoder.encode('The game').tolist(), encoder.encode(whole).tolist()
    assert ids[:len(known)] == known
    tokens = np.int32(ids[len(known):])
    drawn = [sample for sample, in generate.generate(Recital(encoder.size), tokens, encoder, [prompt], prefix=[0],
                                                     length=tokens.size, sampler=generate.Sampler(0.0), **options)]
    return drawn[-1], [sample.text for sample in drawn]


@pytest.mark.parametrize('name', CONTINUED)
def test_prompt_and_continuation_read_as_one_text(name, monkeypatch):
    monkeypatch.setattr(generate.sampling, 'CHUNK', 1)
    encoder, whole = CONTINUED[name](), 'The game was 12 to 3.'
    sample, texts = recited(encoder, 'The game', whole)
    assert 'The game' + sample.text == whole
    assert all(after.startswith(before) for before, after in zip(texts, texts[1:]))
    sample, _ = recited(encoder, 'The game', whole, stop=' to')
    assert sample.text == ' was 12'


@pytest.mark.parametrize('name', ['wordpiece', 'words', 'dummy prefix'])
def test_a_space_that_a_tokenizer_drops_at_the_end_of_a_prompt_is_not_written_twice(name):
    assert recited(CONTINUED[name](), 'The game ', 'The game was 12 to 3.')[0].text == 'was 12 to 3.'


@pytest.mark.parametrize('name', CONTINUED)
def test_the_text_of_each_token_is_what_it_adds(name):
    encoder, whole = CONTINUED[name](), 'The game was 12 to 3.'
    ids = encoder.encode(whole).tolist()
    pieces = [encoder.decode_after(ids[:at], [token]) for at, token in enumerate(ids)]
    assert ''.join(pieces) == (whole.lower() if name == 'wordpiece' else whole)
    assert ''.join(pieces[len(encoder.encode('The game')):]) == ' was 12 to 3.'
    shown = command._spelled(np.array(ids), encoder).plain
    assert shown.replace('|', '').endswith(''.join(pieces)) and shown != whole


def text_of_documents():
    return [f'{document.text}\n' for document in data.Synthetic(6, 40).documents()]


@dataclasses.dataclass(frozen=True)
class Few(data.Source):
    """Six short documents."""
    label = 'few'

    def records(self):
        return (data.Document(text, self.label) for text in text_of_documents())

    def fingerprint(self):
        return 'few'


def tokens_before_documents(corpus, root):
    """Returns ({ids that a document of the corpus is predicted after, or () at its first token}, its encoder)."""
    stream = corpus.open(root, 'train').once()
    documents = [stream.encoder.encode(text).tolist()[:-1] for text in text_of_documents()]
    found = set()
    for step in range(stream.batches):
        batch = stream.batch_at(step)
        for row, segments in zip(batch['inputs'].tolist(), batch.get('segments', 0 * batch['inputs']).tolist()):
            for at in range(len(row)):
                for ids in documents:
                    if row[at:at + len(ids)] == ids:
                        found.add((row[at - 1],) if at and segments[at - 1] == segments[at] else ())
    return found, stream.encoder


TOKENIZERS = {'bytes': data.Bytes, 'chars': data.Chars, 'words': data.Words,
              'sentencepiece': lambda: data.SentencePiece(size=300), 'json': lambda: data.HuggingFace(json_file())}


@pytest.mark.parametrize('packing', ['windows', 'bestfit'])
@pytest.mark.parametrize('name', TOKENIZERS)
def test_what_generation_puts_before_a_prompt_is_what_training_shows_before_a_document(name, packing, tmp_path):
    context = 120 if name in ('bytes', 'chars') else 50
    corpus = data.Corpus(train=Few(), valid=None, tokenizer=TOKENIZERS[name](), context=context, batch=2,
                         packing=packing)
    before, encoder = tokens_before_documents(corpus, tmp_path)
    prefix = corpus.prefix(encoder)
    if name not in ('chars', 'words'):
        assert before == {(encoder.eos,)} and prefix == [encoder.eos]
    elif packing == 'bestfit':
        assert before == {()} and prefix == []
    else:
        assert before - {()} == {tuple(encoder.encode('\n').tolist())} and prefix == []
