"""Speculative decoding: drafts whose text is the trunk's own, exactly."""
import dataclasses
import itertools
from functools import partial

import architectures
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from architectures import ahead, parameters

from lm import generate
from lm.generate import Sampler, speculation
from lm.models import Decoder, Embedding, Layer
from lm.nn import MLP, Attention
from lm.nn.context import Context
from lm.tokenizers.plain import ByteEncoder

MODEL = ahead('llama')
PARAMS = parameters(MODEL)

PROMPTS = np.int32([[7, 8, 9, 10, 11, 12, 13, 14], [3, 0, 0, 0, 0, 0, 0, 0], [5, 6, 0, 0, 0, 0, 0, 0]]), \
    np.int32([8, 1, 2]), np.int32(0)


def drafted(model, params, sampler, prompts=PROMPTS, slots=64, count=12, times=2, seed=0):
    """Returns (tokens, logprobs, drafted), [B n] each, by speculation."""
    more, parts = architectures.jit(partial(speculation.extend, model, sampler, count)), []
    state = architectures.jit(partial(speculation.begin, model, slots))(params, prompts, jax.random.key(seed))
    for _ in range(times):
        state, *drawn = more(params, state)
        parts.append(jax.device_get(drawn))
    return [np.concatenate(part, 1) for part in zip(*parts)]


def related(model, scale=0.03):
    """Returns parameters whose drafts often pass: modules add little to what the trunk says of the token before."""
    params = parameters(model)
    return {**params, 'modules': jax.tree.map(lambda x: x * scale if x.ndim > 1 else x, params['modules'])}


@pytest.mark.parametrize('name, sampler', [
    ('gpt2', Sampler(0.0)), ('gemma3', Sampler(0.0, repetition=1.4)), ('relative', Sampler(0.0)),
    *(pytest.param(name, Sampler(0.0), marks=pytest.mark.long) for name in ('gpt_oss', 'vaswani', 'alibi', 'llama'))])
def test_greedy_text_is_that_of_the_next_token(name, sampler):
    model = ahead(name, 2)
    if model.limit:
        position = dataclasses.replace(model.embedding.position, length=40)
        model = dataclasses.replace(model, embedding=Embedding(position))
    params = related(model)
    tokens, logprobs, _ = drafted(model, params, sampler)

    @architectures.jit
    def plain(params):
        begun = generate.begin(model, 64, params, PROMPTS, jax.random.key(0))
        return generate.extend(model, sampler, 24, params, begun)[1:]
    expected, known = plain(params)
    np.testing.assert_array_equal(tokens, expected)
    np.testing.assert_allclose(logprobs, known, atol=1e-4)


TINY = ahead(Decoder(4, 1, 8, Layer(Attention(2), MLP(16))), 2)
LONG = 3  # tokens of the texts that are counted


@pytest.fixture(scope='module')
def enumerated():
    """Returns (texts [64 3], logits [64 3 V] of the next token along each) after the prompt of `counted`."""
    texts = np.array(list(itertools.product(range(4), repeat=LONG)), np.int32)
    rows = np.concatenate([np.tile(np.int32([1, 2]), (len(texts), 1)), texts], 1)
    return texts, np.asarray(architectures.jit(TINY.logits)(related(TINY, 0.5), rows))[:, 1:-1]


def probabilities(sampler, texts, logits):
    """Returns the probability of each text, token by token from the trunk's logits and the tokens before."""
    chance, seen = np.ones(len(texts)), np.zeros((len(texts), 4), bool)
    seen[:, [1, 2]] = True
    for place in range(LONG):
        chance *= np.asarray(sampler.probabilities(logits[:, place], seen))[np.arange(len(texts)), texts[:, place]]
        seen[np.arange(len(texts)), texts[:, place]] = True
    return chance


def distance(counts, chance):
    """Returns (the chi-square statistic of counts against probabilities, its degrees of freedom)."""
    possible, total = chance > 0, counts.sum()
    assert counts[~possible].sum() == 0
    return np.sum((counts - total * chance)[possible] ** 2 / (total * chance[possible])), possible.sum() - 1


@pytest.mark.parametrize('sampler', [
    Sampler(), Sampler(1.5, top_k=3), Sampler(0.7, top_p=0.8, repetition=2.0)], ids=str)
def test_sampled_texts_have_the_probabilities_of_the_trunk(sampler, enumerated):
    """Of all texts of three tokens, over 20,000 draws; texts of another sampler are told apart."""
    rows = 20_000
    prompts = np.tile(np.int32([1, 2]), (rows, 1)), np.full(rows, 2, np.int32), np.int32(0)
    tokens, _, passed = drafted(TINY, related(TINY, 0.5), sampler, prompts, 8, LONG, 1, seed=5)
    assert 0.1 < passed.mean() < 0.65
    counts = np.bincount(tokens @ [16, 4, 1], minlength=64)
    found, freedom = distance(counts, probabilities(sampler, *enumerated))
    assert found < freedom + 4 * np.sqrt(2 * freedom)
    bent = probabilities(Sampler(1.2), *enumerated)
    assert distance(counts, bent)[0] > freedom + 40 * np.sqrt(2 * freedom)


def test_a_row_depends_on_none_beside_it_nor_on_how_many_tokens_are_asked_for_at_once():
    sampler, params = Sampler(0.9), related(MODEL)
    whole = drafted(MODEL, params, sampler)
    alone = drafted(MODEL, params, sampler, tuple(part[:1] if part.ndim else part for part in PROMPTS), count=5)
    for part, own in zip(whole, alone, strict=True):
        np.testing.assert_allclose(part[:1, :10], own, atol=1e-4)
    assert (whole[0] != drafted(MODEL, params, sampler, seed=1)[0]).any()


def test_rejected_drafts_leave_nothing_behind():
    """Modules draft by their caches what they do from the whole text at once, whatever was rejected before."""
    params = related(MODEL, 0.3)
    state = architectures.jit(partial(speculation.begin, MODEL, 64))(params, PROMPTS, jax.random.key(0))
    state, *_, passed = architectures.jit(partial(speculation.extend, MODEL, Sampler(0.7), 24))(params, state)
    assert 0.1 < np.mean(passed) < 0.9
    length = np.asarray(state.cache['length'])
    drafts, _, _, cache = architectures.jit(partial(speculation._draft, MODEL, Sampler(0.0)))(params, state)
    text = np.asarray(state.text).copy()
    text[np.arange(3)[:, None], length[:, None] + 1 + np.arange(3)] = drafts

    @architectures.jit
    def whole(text):
        x, opened = MODEL.read(params, text, length, 64)
        best = []
        for number in (1, 2, 3):
            x, _ = MODEL.module(params, number, x, jnp.roll(text, -number, 1), Context(jnp.arange(64)[None]))
            best.append(jnp.argmax(MODEL._scores(params, x), -1))
        return jnp.stack(best, -1), opened['entries']
    best, entries = whole(text)
    np.testing.assert_array_equal(best[np.arange(3), length - 1], drafts)
    kept = (np.arange(64) < length[:, None])[None, :, :, None, None]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a * kept, b * kept, atol=1e-4), cache['entries'], entries)


def test_the_rate_counts_passes():
    def of(*drafts):
        return generate.Sample('', [0] * len(drafts), [0.0] * len(drafts), list(drafts))
    assert generate.tokens_a_pass([of(True, True, False, False)]) == 2
    assert generate.tokens_a_pass([of(True, True, False, True), of(False)]) == 5 / 3
    assert generate.tokens_a_pass([of()]) == 0


def test_texts_end_as_those_of_any_model_do():
    model = ahead(architectures.small(vocab=258), 2)
    run = partial(generate.generate, model, related(model), prompts=['ab', 'A longer prompt'], sampler=Sampler(0.0))
    *_, plain = run(encoder=dataclasses.replace(ByteEncoder(), eos=None), length=19)
    ending = dataclasses.replace(ByteEncoder(), eos=plain[0].tokens[3])
    *_, cut = run(encoder=ending, length=19)
    end = plain[0].tokens.index(ending.eos)
    assert [len(sample.drafted) for sample in plain] == [19, 19] and cut[0].tokens == plain[0].tokens[:end]
    assert len(cut[0].drafted) == len(cut[0].logprobs) == end
