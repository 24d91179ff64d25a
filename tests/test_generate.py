"""Samplers against numpy, and generation against the full forward pass."""
import dataclasses
import io
from functools import partial

import architectures
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from architectures import parameters, small

from lm import config, generate
from lm.generate import Sample, Sampler
from lm.models import Decoder, Embedding, Layer
from lm.nn import Attention, Learned, NoPE
from lm.tokenizers.plain import ByteEncoder

MODEL = small(vocab=258, pattern=(Layer(Attention(4, 2, window=6)), Layer(Attention(4, 2))))
PARAMS = parameters(MODEL)
GREEDY = Sampler(temperature=0.0)
NO_END = dataclasses.replace(ByteEncoder(), eos=None)
LENGTH = 40
rng = np.random.default_rng(0)
LOGITS = (2 * rng.standard_normal((6, 30))).astype(np.float32)
UNSEEN = np.zeros(LOGITS.shape, bool)


@partial(architectures.jit, static_argnums=0)
def forward(model, params, tokens):
    return jax.nn.log_softmax(model.logits(params, tokens))


def run(prompts, encoder=NO_END, **options):
    """Returns the last list of Samples."""
    return list(generate.generate(MODEL, PARAMS, encoder, prompts, prefix=[257], **options))[-1]


def scored(prompt, tokens):
    """Returns the log-probabilities [n V] that the full forward pass gives at each of `tokens` after a prompt."""
    whole = [257, *prompt.encode(), *tokens]
    row = np.zeros((1, LENGTH + 16), np.int32)
    row[0, :len(whole)] = whole
    return np.asarray(forward(MODEL, PARAMS, row))[0, len(whole) - len(tokens) - 1:len(whole) - 1]


def kept(sampler, logits, seen):
    """Returns the adjusted logits of one row, written from the definitions, one token after the other."""
    logits = [float(x) for x in logits]
    for token, was in enumerate(seen):
        if was:
            logits[token] *= 1 / sampler.repetition if logits[token] > 0 else sampler.repetition
    logits = [x / sampler.temperature for x in logits]
    order = sorted(range(len(logits)), key=lambda token: -logits[token])
    order = order[:sampler.top_k or None]
    chances = np.exp([logits[token] for token in order])
    chances, nucleus = chances / chances.sum(), []
    for token, before in zip(order, np.cumsum(chances) - chances):
        if before < sampler.top_p:
            nucleus.append(token)
    nucleus = [token for token in nucleus if np.exp(logits[token] - logits[order[0]]) >= sampler.min_p]
    return [x if token in nucleus else -np.inf for token, x in enumerate(logits)]


@pytest.mark.parametrize('sampler', [
    Sampler(), Sampler(0.5), Sampler(top_k=1), Sampler(top_k=7), Sampler(top_k=300), Sampler(top_p=0.3),
    Sampler(top_p=0.9), Sampler(min_p=0.2), Sampler(repetition=1.7), Sampler(repetition=0.5),
    Sampler(0.7, 10, 0.8, 0.1, 1.3),
], ids=str)
def test_adjusted_logits_are_those_of_the_definitions(sampler):
    seen = rng.random(LOGITS.shape) < 0.3
    expected = [kept(sampler, *row) for row in zip(LOGITS, seen)]
    np.testing.assert_allclose(architectures.jit(sampler.adjust)(LOGITS, seen), expected, rtol=1e-5)


@pytest.mark.parametrize('sampler', [GREEDY, Sampler(top_k=1), Sampler(top_p=1e-9), Sampler(min_p=1.0),
                                     Sampler(1e-30)], ids=str)
def test_every_limit_is_the_likeliest_token(sampler):
    keys = jax.random.split(jax.random.key(0), len(LOGITS))
    token = architectures.jit(lambda logits: sampler.draw(sampler.adjust(logits, UNSEEN), keys))(LOGITS)
    np.testing.assert_array_equal(token, LOGITS.argmax(-1))


def test_draws_have_the_probabilities_of_the_softmax():
    logits, sampler = np.log(np.float32([[0.5, 0.3, 0.15, 0.05]])), Sampler(top_k=3)
    rows, seen, keys = np.repeat(logits, 4000, 0), np.zeros((4000, 4), bool), jax.random.split(jax.random.key(0), 4000)
    drawn = architectures.jit(lambda rows, keys: sampler.draw(sampler.adjust(rows, seen), keys))(rows, keys)
    shares = np.bincount(drawn, minlength=4) / 4000
    np.testing.assert_allclose(shares, [0.5 / 0.95, 0.3 / 0.95, 0.15 / 0.95, 0], atol=0.03)


@pytest.mark.parametrize('name, value', [
    ('temperature', -1.0), ('temperature', float('nan')), ('top_k', -1), ('top_p', 0.0), ('top_p', 1.1),
    ('min_p', -0.1), ('min_p', 2.0), ('repetition', 0.0)])
def test_a_bad_sampler_is_one_clear_line(name, value):
    with pytest.raises(config.Error, match=f'^{name}={value} is no.*; try {name}=') as caught:
        Sampler(**{name: value})
    assert '\n' not in str(caught.value)


@pytest.fixture(scope='module')
def greedy():
    return run(['ab', 'A longer prompt'], length=24, sampler=GREEDY)


@pytest.mark.parametrize('row, prompt', [(0, 'ab'), (1, 'A longer prompt')])
def test_greedy_is_the_argmax_of_the_full_forward_step_by_step(row, prompt, greedy):
    tokens = []
    while len(tokens) < 24:
        tokens.append(int(scored(prompt, [*tokens, 0])[-1].argmax()))
    assert greedy[row].tokens == tokens
    assert greedy[row].text == NO_END.decode(tokens)


def test_logprobs_are_the_full_forwards(greedy):
    warm = run(['ab', 'A longer prompt'], length=24, sampler=Sampler(0.7, top_k=20))
    for samples in (greedy, warm):
        for prompt, sample in zip(['ab', 'A longer prompt'], samples):
            expected = scored(prompt, sample.tokens)[np.arange(24), sample.tokens]
            np.testing.assert_allclose(sample.logprobs, expected, atol=1e-4)
    assert [sample.tokens for sample in warm] != [sample.tokens for sample in greedy]


def test_a_seed_draws_the_same_text_and_another_another():
    one, same, other = (run(['ab', 'ab'], length=24, seed=seed) for seed in (1, 1, 2))
    assert one == same
    assert len({tuple(sample.tokens) for sample in one + other}) == 4


def test_a_row_does_not_depend_on_the_rows_beside_it_or_the_length():
    both = run(['ab', 'cd'], length=24)
    beside, alone = run(['ab', 'quite another text'], length=17), run(['ab'], length=17)
    assert both[0].tokens[:17] == beside[0].tokens == alone[0].tokens
    assert both[1].tokens[:17] != beside[1].tokens


def test_repetition_counts_the_prompt_and_what_was_drawn():
    """A penalty without bound never takes a token twice, nor one of the prompt."""
    tokens = [*b'ab', *run(['ab'], length=24, sampler=Sampler(0.0, repetition=1e6))[0].tokens]
    assert len(set(tokens)) == len(tokens)


@pytest.mark.parametrize('prefix, counted', [([257], False), ([], True)])
def test_repetition_does_not_count_what_stands_before_the_prompt(prefix, counted):
    """Else a penalty would keep the end-of-text token, which training shows before a document, from ending it."""
    tokens = np.int32([[257, *b'ab', 0]])
    decoding = generate.begin(MODEL, 64, PARAMS, (tokens, np.int32([3]), np.int32(len(prefix))), jax.random.key(0))
    assert np.flatnonzero(decoding.seen[0]).tolist() == [*b'ab', *[257] * counted]


def test_the_end_of_text_token_ends_a_row_and_is_not_in_it(greedy):
    tokens = greedy[0].tokens
    end = next(n for n in range(1, 24) if tokens[n] not in tokens[:n])
    ending = dataclasses.replace(NO_END, eos=tokens[end])
    sample = run(['ab', 'A longer prompt'], ending, length=24, sampler=GREEDY)[0]
    assert sample == Sample(NO_END.decode(tokens[:end]), tokens[:end], greedy[0].logprobs[:end])


def test_generation_stops_when_every_row_has_ended(greedy):
    ending = dataclasses.replace(NO_END, eos=greedy[0].tokens[3])
    steps = list(generate.generate(MODEL, PARAMS, ending, ['ab', 'ab'], length=200, sampler=GREEDY))
    assert len(steps) == 1


class Script(Decoder):
    """A model whose parameters are the tokens that it wants to say, one after the other."""

    def prefill(self, params, tokens, lengths, slots):
        return self.say(params, jnp.zeros_like(lengths)), {'length': lengths, 'said': jnp.zeros_like(lengths)}

    def decode(self, params, tokens, cache):
        said = cache['said'] + 1
        return self.say(params, said), {'length': cache['length'] + 1, 'said': said}

    def say(self, params, said):
        return 100 * jax.nn.one_hot(jnp.take(params, said, mode='clip'), self.vocab)


SCRIPT = Script(vocab=258)


def said(text, stop=(), length=None):
    """Yields what `generate` yields while a model says `text`, up to its end-of-text token or `length` tokens."""
    tokens = np.full(64, 257, np.int32)
    tokens[:len(text.encode())] = list(text.encode())
    yield from generate.generate(SCRIPT, tokens, ByteEncoder(), ['ab'], sampler=GREEDY, stop=stop, length=length or 64)


def shown(drawn, prompt=''):
    out = io.StringIO()
    generate.stream(prompt, drawn, out)
    return out.getvalue()


@pytest.fixture(params=[1, 2, 16])
def chunk(request, monkeypatch):
    monkeypatch.setattr(generate.sampling, 'CHUNK', request.param)


TEXTS = ['', 'plain text of more than sixteen bytes', 'héé€ 😀', 'a real \ufffd mark', 'ends \ufffd\ufffd', '\n\n']


@pytest.mark.parametrize('text', TEXTS)
def test_streaming_prints_the_final_text_once(text, chunk):
    *_, (final,) = said(text)
    assert final.text == text
    assert final.tokens == list(text.encode())
    assert shown(said(text), 'prompt ') == f'prompt {text}\n'


@pytest.mark.parametrize('text, stop, expected', [
    ('one, two STOP three STOP', ('STOP',), 'one, two '),
    ('one, two STOP three', ('three', 'never', 'STOP'), 'one, two '),
    ('one, two STOP three', ('P t', 'STOP'), 'one, two '),
    ('é€ STé€OP', ('STé€',), 'é€ '),
    ('é€€', ('€€',), 'é'),
    ('STOP', ('STOP',), ''),
    ('a full ST', ('STOP',), 'a full ST'),
    ('SSTSTSTOPS', ('STSTO', 'x'), 'SST'),
])
def test_a_stop_string_ends_the_text_before_it(text, stop, expected, chunk):
    *_, (final,) = said(text, stop)
    assert final.text == expected
    assert final.tokens == list(expected.encode())
    assert len(final.logprobs) == len(final.tokens)
    assert shown(said(text, stop)) == expected + '\n'


def test_a_stop_string_may_be_given_alone():
    *_, (final,) = said('Tops STOP', 'STOP')
    assert final.text == 'Tops '


def test_a_text_cut_in_the_middle_of_a_character_shows_the_mark():
    *_, (final,) = said('a€', length=3)
    assert final.text == 'a\ufffd'
    assert shown(said('a€', length=3)) == 'a\ufffd\n'


@pytest.mark.parametrize('length', [1, 16, 17])
def test_a_row_has_the_length_asked_for(length):
    assert len(run(['ab', 'ab'], length=length)[0].tokens) == length


@pytest.mark.parametrize('length', [0, -3])
def test_a_length_below_one_is_one_clear_line(length):
    with pytest.raises(config.Error, match=f'^length={length} is not positive'):
        run(['ab', 'ab'], length=length)


def test_an_empty_prompt_with_nothing_before_it_is_one_clear_line():
    with pytest.raises(config.Error, match='^the prompt is empty and no token stood before a document in training'):
        list(generate.generate(MODEL, PARAMS, NO_END, [''], length=4))


def test_an_empty_prompt_starts_at_what_stands_before_a_document():
    sample = run([''], length=4, sampler=GREEDY)[0]
    assert sample.tokens[0] == scored('', [0])[-1].argmax() and len(sample.tokens) == 4


def test_learned_positions_generate_up_to_their_length_and_say_so_beyond():
    model = small(vocab=258, depth=1, layer=Layer(Attention(4, position=NoPE())), embedding=Embedding(Learned(12)))
    draw = partial(generate.generate, model, parameters(model), NO_END, ['ab'], prefix=[257],
                   sampler=GREEDY)
    assert len(list(draw(length=9))[-1][0].tokens) == 9
    with pytest.raises(config.Error, match='do not fit 12 positions; try') as caught:
        list(draw(length=11))
    assert 'length=11' in str(caught.value) or '14 tokens' in str(caught.value)


def test_without_a_length_a_row_is_as_long_as_its_learned_positions_allow():
    model = small(vocab=258, depth=1, layer=Layer(Attention(4, position=NoPE())), embedding=Embedding(Learned(12)))
    draw = partial(generate.generate, model, parameters(model), NO_END, sampler=GREEDY)
    assert [len(sample.tokens) for sample in list(draw(['ab', 'abcd']))[-1]] == [13 - 4] * 2
    with pytest.raises(config.Error, match=r'a prompt of 13 tokens .* try a shorter prompt'):
        list(draw(['abcdefghijklm']))


def test_without_a_length_or_a_limit_a_row_has_200_tokens():
    assert len(run(['ab', 'ab'], sampler=GREEDY)[0].tokens) == 200
