"""Kneser-Ney against an implementation by dictionaries, one probability at a time, and against KenLM where it is."""
import collections
import gzip
import json
import shutil
import subprocess

import numpy as np
import pytest

from lm import cli
from lm.models import ngram

VOCAB = 40  # of them 38 and 39 are never seen


def documents(count, seed):
    """Returns lists of ids that end in 0, of a chain that prefers few successors."""
    rng = np.random.default_rng(seed)
    odds = np.random.default_rng(0).dirichlet(np.full(38, 0.05), 38)
    texts = []
    for _ in range(count):
        text = [int(rng.integers(1, 38))]
        while text[-1] and len(text) < 30:
            text.append(int(rng.choice(38, p=odds[text[-1]])))
        texts.append([*text[:-1], 0] if text[-1] else text)
    return texts


def flat(texts):
    return np.array([token for text in texts for token in text]), np.cumsum([0, *map(len, texts)])


def oracle(train, held, vocab, order):
    """Interpolated modified Kneser-Ney as Chen and Goodman define it: nats of each token of each document."""
    raw = [collections.Counter() for _ in range(order + 1)]
    for text in train:
        text = ['<s>', *text]
        for n in range(1, order + 1):
            raw[n].update(tuple(text[i:i + n]) for i in range(len(text) - n + 1))
    tables = [{}, *({} for _ in range(order))]
    for n in range(1, order + 1):
        before = collections.Counter(longer[1:] for longer in raw[n + 1]) if n < order else {}
        for gram in raw[n]:
            tables[n][gram] = raw[n][gram] if n == order or gram[0] == '<s>' else before[gram]
    del tables[1]['<s>',]
    discounts = []
    for table in tables:
        one, two, three, four = (sum(count == k for count in table.values()) for k in (1, 2, 3, 4))
        y = one / max(one + 2 * two, 1)
        estimates = ([0, 1 - 2 * y * two / one, 2 - 3 * y * three / two, 3 - 4 * y * four / three]
                     if one and two and three else [-1])
        discounts.append(estimates if min(estimates) >= 0 else [0, 0.5, 1, 1.5])
    followers = [collections.defaultdict(list) for _ in tables]
    for n in range(1, order + 1):
        for gram, count in tables[n].items():
            followers[n][gram[:-1]].append(count)

    def chance(gram):
        if not gram:
            return 1 / vocab
        n, lower = len(gram), chance(gram[1:])
        counts = followers[n][gram[:-1]]
        if not counts:
            return lower
        count = tables[n].get(gram, 0)
        spread = sum(discounts[n][min(other, 3)] for other in counts)
        return (count - discounts[n][min(count, 3)] + spread * lower) / sum(counts)
    padded = [['<s>', *text] for text in held]
    return [np.log(chance(tuple(text[max(0, i - order + 1):i + 1]))) for text in padded for i in range(1, len(text))]


@pytest.mark.parametrize('order', [1, 2, 3, 5])
@pytest.mark.parametrize('count', [60, 3])  # three documents are too few to estimate discounts from
def test_equals_the_definition(order, count):
    train, held = documents(count, 1), [*documents(20, 2), [39, 1, 38, 0], [0]]
    model = ngram.fit(*flat(train), VOCAB, order)
    np.testing.assert_allclose(model.log_chances(*flat(held)), oracle(train, held, VOCAB, order), rtol=1e-9)


def test_an_order_above_the_length_of_every_document_is_that_of_the_longest():
    tokens, offsets = np.array([0, 1, 1, 0]), np.array([0, 2, 4])
    longest, longer = (ngram.fit(tokens, offsets, 3, order).log_chances(tokens, offsets) for order in (3, 6))
    np.testing.assert_array_equal(longest, longer)


def test_discounts_are_estimated_where_counts_allow_it():
    """Counts of counts 4, 2, 1, 1: Y = 4/8, so D1 = 1 - 2 Y 2/4, D2 = 2 - 3 Y 1/2 and D3+ = 3 - 4 Y 1/1."""
    counts = np.array([0, 1, 1, 1, 1, 2, 2, 3, 4, 9])
    np.testing.assert_allclose(ngram._discounts(counts), [0, 0.5, 1.25, 1.0], rtol=1e-15)
    assert ngram._discounts(counts[counts != 3]) is ngram.FALLBACK


@pytest.mark.parametrize('order', [1, 2, 5])
def test_chances_of_all_tokens_add_up_to_one_after_any_context(order):
    train = documents(60, 1)
    model = ngram.fit(*flat(train), VOCAB, order)
    for context in ([], train[0][:3], [5, 39, 7], [38]):
        texts = [[*context, last] for last in range(VOCAB)]
        last = model.log_chances(*flat(texts)).reshape(VOCAB, -1)[:, -1]
        assert np.isclose(np.exp(last).sum(), 1, rtol=1e-12)


def test_the_verb_scores_held_out_text_as_eval_does(tmp_path, capsys):
    """Two documents of bytes: bits of all bytes and ends over the bytes, by a model of the documents of both files."""
    texts = ['she sells sea shells', 'by the sea shore', 'she shells']
    paths = [tmp_path / f'{number}.txt' for number in range(3)]
    for path, text in zip(paths, texts, strict=True):
        path.write_text(text)
    (tmp_path / 'x.py').write_text(f"""
from lm import data, optim, train
from lm.models import Decoder
def config():
    return train.Config(
        model=Decoder(258, 1, 24), optimizer=optim.AdamW(), steps=1,
        data=data.Corpus(train=data.Mix((data.Files({str(paths[0])!r}), data.Files({str(paths[1])!r})), (1.0, 3.0)),
                         valid=data.Files({str(paths[2])!r}), tokenizer=data.Bytes(), context=4, batch=1))
""")
    assert cli.main(['ngram', str(tmp_path / 'x.py'), '--order=3', f'--cache={tmp_path / "cache"}']) == 0
    measured = json.loads(capsys.readouterr().out)
    train, held = ([[*text.encode(), 257] for text in part] for part in (texts[:2], texts[2:]))
    nats = ngram.fit(*flat(train), 258, 3).log_chances(*flat(held))
    assert measured['tokens'] == 11 and measured['order'] == 3
    assert measured['loss'] == pytest.approx(-nats.mean(), rel=1e-12)
    assert measured['bits_per_byte'] == pytest.approx(-nats.sum() / np.log(2) / 10, rel=1e-12)


def test_the_verb_refuses_an_order_below_one(capsys):
    assert cli.main(['ngram', 'experiments/tiny.py', '--order=0']) == 2
    assert '--order=0 counts nothing; try --order=5.' in capsys.readouterr().err


def test_large_vocabularies_do_not_overflow():
    (train, bounds), (held, held_bounds) = flat(documents(60, 1)), flat(documents(5, 2))
    small = ngram.fit(train, bounds, 10 ** 6).log_chances(held, held_bounds)
    large = ngram.fit(25_000 * train, bounds, 10 ** 6).log_chances(25_000 * held, held_bounds)
    np.testing.assert_allclose(small, large, rtol=1e-12)


def test_keys_that_leave_no_bits_for_places_are_sorted_too():
    keys = np.random.default_rng(0).integers(2 ** 61, 2 ** 62, 1000)
    for numbers in (keys, keys >> 30):
        ordered, places = ngram._sort(numbers)
        assert (np.diff(ordered) >= 0).all() and (numbers[places] == ordered).all()


def test_equals_kenlm(shared, tmp_path):
    """Perplexity of order 5 within 1e-6 of the ARPA file that KenLM's lmplz writes, in single precision."""
    lmplz = shutil.which('lmplz')
    if not lmplz:
        pytest.skip('lmplz of KenLM is not on the PATH')
    train, held = ([line.replace('<unk>', 'UNKNOWN').split() for line in lines if line.strip()] for lines in (
        gzip.open(shared / f'wikitext2/{name}.txt.gz', 'rt', encoding='utf-8') for name in ('valid', 'test')))
    words = {word: number for number, word in enumerate(sorted({word for line in train for word in line}), start=2)}
    train, held = ([[words.get(word, 1) for word in line] + [0] for line in lines] for lines in (train, held[:200]))
    (tmp_path / 'text').write_text(''.join(' '.join(map(str, line[:-1])) + '\n' for line in train))
    with open(tmp_path / 'text') as text, open(tmp_path / 'arpa', 'w') as arpa:
        subprocess.run([lmplz, '-o', '5', '-S', '100M', '-T', tmp_path], stdin=text, stdout=arpa, check=True,
                       stderr=subprocess.DEVNULL)
    table = {}
    for line in (tmp_path / 'arpa').read_text().split('\\1-grams:')[1].splitlines():
        if '\t' in line:
            chance, gram, *backoff = line.split('\t')
            table[tuple(gram.split(' '))] = float(chance), float(backoff[0]) if backoff else 0.0

    def score(gram):
        if gram in table:
            return table[gram][0]
        return table.get(gram[:-1], (0, 0.0))[1] + score(gram[1:])
    sentences = [['<s>', *('<unk>' if token == 1 else str(token) for token in line[:-1]), '</s>'] for line in held]
    theirs = [score(tuple(line[max(0, i - 4):i + 1])) for line in sentences for i in range(1, len(line))]
    ours = ngram.fit(*flat(train), len(words) + 2).log_chances(*flat(held))
    assert np.exp(-ours.mean()) == pytest.approx(10 ** -np.mean(theirs), rel=1e-6)
