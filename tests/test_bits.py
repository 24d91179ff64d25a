"""Bits per byte on texts whose entropy is known, and documents that begin as training showed them."""
import dataclasses
import functools
import math
import string

import jax
import numpy as np
import pytest
from encoders import json_file

from lm import data, evaluate, generate, optim, train
from lm.data import cache
from lm.models import Decoder, Layer
from lm.nn import Attention

VOCABULARY = 620  # one for all tokenizers, so that few programs are compiled
CAPITALS = string.ascii_uppercase
ENTROPY = math.log2(26) / 4


@dataclasses.dataclass(frozen=True)
class Tagged(data.Source):
    """`count` documents of one of 26 letters, drawn evenly, and `tail`."""

    seed: int = 0
    count: int = 1000
    tail: str = 'zzz'
    label = 'tagged'

    def records(self):
        for letter in np.random.default_rng(self.seed).integers(0, 26, self.count):
            yield data.Document(CAPITALS[letter] + self.tail, self.label)

    def fingerprint(self):
        return f'tagged {self.seed} {self.count} {self.tail}'


def corpus_of(tokenizer, packing, **fields):
    """Returns a Corpus with rows of a length that no document's divides, so that they begin anywhere in one."""
    return data.Corpus(Tagged(**fields), Tagged(seed=1, **fields), tokenizer, context=33, batch=32, packing=packing)


def trained(corpus, root, steps=200):
    """Returns (model, parameters, mesh, encoder) after a short while."""
    stream = corpus.open(root)
    settings = train.Config(model=Decoder(VOCABULARY, 1, 32, Layer(Attention(2))), data=corpus, steps=steps,
                            optimizer=optim.AdamW(peak=1e-2, weight_decay=0.0), mesh={'data': 1})
    program = train.program(settings, jax.sharding.Mesh(np.array(jax.devices()[:1]), ('data',)))
    state = program.init()
    with program.context():
        for step in range(steps):
            state, _ = program.step(state, stream.batch_at(step))
    return settings.model, state.params, program.mesh, stream.encoder


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    return tmp_path_factory.mktemp('cache')


@pytest.fixture(scope='module')
def short_while(root):
    """Returns (packing, tokenizer) -> what `trained` returns, once each."""
    return functools.cache(lambda packing, tokenizer, **fields: trained(corpus_of(tokenizer, packing, **fields), root))


@pytest.mark.parametrize('stride', [0, 8])
@pytest.mark.parametrize('packing', ['windows', 'bestfit'])
def test_a_document_of_a_letter_and_zzz_has_the_bits_of_its_letter(packing, stride, root, short_while):
    """They read 0.035 and 0.039 where the first token of a document was not predicted."""
    model, params, mesh, _ = short_while(packing, data.Bytes())
    valid = corpus_of(data.Bytes(), packing).open(root, 'valid').once(stride)
    scores = train.NextToken().score(model, params, valid, mesh)
    assert scores['tokens'] == 5 * 1000 and valid.texts == [(4000, 5000, 0)]
    np.testing.assert_allclose(scores['bits_per_byte'], ENTROPY, rtol=0.05)


@pytest.mark.parametrize('packing, unpredicted', [('windows', 1), ('bestfit', 1000)])
def test_what_nothing_stands_before_costs_the_vocabulary(packing, unpredicted, root):
    """A uniform code over 27 characters, of letters that are drawn from 26."""
    valid = corpus_of(data.Chars(), packing).open(root, 'valid')
    assert valid.encoder.size == 27 and valid.texts == [(4000, 4000 - unpredicted, unpredicted)]
    exact = np.array([[math.log(26) * (1000 - unpredicted), 4000 - unpredicted]])
    np.testing.assert_allclose(evaluate.scores(exact, valid)['bits_per_byte'], ENTROPY, rtol=0.012)


@pytest.mark.parametrize('name', ['bytes', 'sentencepiece', pytest.param('json', marks=pytest.mark.long)])
@pytest.mark.parametrize('packing', ['windows', 'bestfit'])
def test_generation_begins_as_documents_do(packing, name, short_while):
    """The likelihood of a capital first, and 200 samples; behind the BOS that training never showed few have one."""
    tokenizer = {'bytes': data.Bytes(), 'sentencepiece': data.SentencePiece(size=300, kind='bpe'),
                 'json': data.HuggingFace(json_file())}[name]
    model, params, _, encoder = short_while(packing, tokenizer, tail=' was here.\n')
    prefix = corpus_of(tokenizer, packing).prefix(encoder)
    chances = jax.nn.softmax(model.logits(params, np.array([prefix]))[0, -1])
    begins = [encoder.decode([token])[:1] in {*CAPITALS} for token in range(encoder.size)]
    assert np.sum(chances[:encoder.size][np.array(begins)]) > 0.9
    samples = list(generate.generate(model, params, encoder, [''] * 200, prefix=prefix, length=1,
                                     sampler=generate.Sampler(top_p=0.9)))[-1]
    assert sum(sample.text[:1] in {*CAPITALS} for sample in samples) >= 195
    if name == 'bytes':
        after = jax.nn.log_softmax(model.logits(params, np.array([[encoder.bos]]))[0, -1])
        assert -np.mean(after[np.array([*CAPITALS.encode()])]) > math.log(26) + 1


@pytest.mark.parametrize('tokenizer', [data.Chars(), data.Words()], ids=['chars', 'words'])
def test_without_an_end_token_generation_begins_after_a_line_break(tokenizer, short_while):
    model, params, _, encoder = short_while('windows', tokenizer, tail=' was here.\n')
    assert corpus_of(tokenizer, 'windows').prefix(encoder) == [] and generate.opening([]) == '\n'
    samples = list(generate.generate(model, params, encoder, ['\n'] * 200, length=1,
                                     sampler=generate.Sampler(top_p=0.9)))[-1]
    assert sum(sample.text.strip()[:1] in {*CAPITALS} for sample in samples) >= 195


LOSSLESS = {'bytes': data.Bytes, 'sentencepiece': lambda: data.SentencePiece(size=4096),
            'gpt2': lambda: data.HuggingFace('tokenizers/gpt2_tokenizer.json.gz'),
            'deepseek': lambda: data.HuggingFace('tokenizers/deepseek_r1_tokenizer.json.gz'),
            'mistral': lambda: data.SentencePiece(model='tokenizers/mistral-v1_tokenizer.model')}


@pytest.mark.parametrize('name', LOSSLESS)
def test_tokenizers_that_keep_real_text_lose_none(name, shared, tmp_path):
    shared / 'tokenizers'
    text = data.Mix((data.Cut(data.Files(str(shared / 'wikitext2' / 'wiki.valid.raw.gz')), 0.0, 0.1),
                     data.Cut(data.Files(str(shared / 'chinese_novels' / 'xiyouji.txt.gz')), 0.0, 0.02)), (1.0, 1.0))
    _, caches = cache.prepare(text, LOSSLESS[name](), tmp_path)
    assert [part.report['lost'] for part in caches] == [0, 0]


T5 = data.SentencePiece(model='tokenizers/sentencepiece_cc_all.32000.100extra-sentencepiece.model')


@pytest.mark.parametrize('tokenizer', [data.Words(least=1000), T5], ids=['words', 't5'])
def test_a_lossy_tokenizer_gives_no_bits_per_byte_and_says_why(tokenizer, shared, tmp_path):
    """Words of WikiText-2 that are two thirds <unk> read 0.426."""
    shared / 'tokenizers'
    raw = data.Cut(data.Files(str(shared / 'wikitext2' / 'wiki.valid.raw.gz')), 0.0, 0.1)
    corpus = data.Corpus(raw, raw, tokenizer, context=64, batch=8)
    valid = corpus.open(tmp_path, 'valid')
    size = sum(len(document.text.encode()) for document in raw.documents())
    assert valid.lost.startswith('the tokenizer is lossy') and f'of {size:,} bytes' in valid.lost
    scores = evaluate.scores(np.array([[9.0, 3.0]]), valid)
    assert scores == {'loss': 3.0, 'perplexity': pytest.approx(math.exp(3)), 'tokens': 3}
    assert any('no bits per byte' in line for line in train.NextToken().summary(scores, corpus))


def test_sources_that_no_batch_read_are_absent_and_equal_names_stay_apart(tmp_path):
    texts = [tmp_path / folder / 'text.txt' for folder in ('one', 'two')]
    for path, letter in zip(texts, 'ab'):
        path.parent.mkdir()
        path.write_text(letter * 400)
    mix = data.Mix(tuple(data.Files(str(path)) for path in texts), (1.0, 1.0))
    valid = data.Corpus(mix, mix, data.Bytes(), context=16, batch=4).open(tmp_path / 'cache', 'valid')
    scores = evaluate.scores(np.array([[40.0, 20.0], [30.0, 10.0]]), valid)
    assert (scores['loss/text'], scores['loss/text-2']) == (2.0, 3.0)
    scores = evaluate.scores(np.array([[0.0, 0.0], [30.0, 10.0]]), valid)
    assert 'loss/text' not in scores and scores['loss/text-2'] == 3.0
    np.testing.assert_allclose(scores['bits_per_byte'], 401 * 3 / math.log(2) / 400)
