"""Text generation from a trained model: prefill and decode with an explicit KV cache."""
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lm import config
from lm.generate import speculation
from lm.generate.sampler import Sampler, row_keys, seen_in
from lm.parallel import sharding

CHUNK = 16
LENGTH = 200  # tokens of a continuation where no length is asked for
MORE = 50  # tokens that an answer has more than its question, then (Vaswani et al. 2017, section 6.1)


class Decoding(NamedTuple):
    """A generation under way: logits [B V] of the next token, the cache, a key per row [B], tokens seen [B V]."""

    logits: jax.Array
    cache: Any
    key: jax.Array
    seen: jax.Array


@partial(jax.jit, static_argnums=(0, 1))
def begin(model, slots, params, prompts, key):
    """Returns the Decoding after `prompts`, with room for `slots` tokens a row.

    `prompts` are (tokens [B T], lengths [B] from 1 on, how many tokens at the beginning do not count as seen).
    Each row has a key of its own, so that what it draws does not depend on the rows beside it.
    """
    tokens, lengths, _ = prompts
    logits, cache = model.prefill(params, tokens, lengths, slots)
    return Decoding(logits, cache, row_keys(key, len(tokens)), seen_in(*prompts, model.vocab))


@partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=4)
def extend(model, sampler, count, params, decoding):
    """Returns (decoding, tokens [B count], logprobs [B count]) after `count` more tokens a row.

    Log-probabilities are the model's own, in nats, before the sampler bends them.
    """
    def advance(now, _):
        logits = sampler.adjust(now.logits, now.seen)
        keys = jax.vmap(jax.random.fold_in)(now.key, now.cache['length'])
        token = sampler.draw(logits, keys)
        chosen = jnp.take_along_axis(jax.nn.log_softmax(now.logits), token[:, None], -1)[:, 0]
        logits, cache = model.decode(params, token, now.cache)
        seen = now.seen.at[jnp.arange(token.shape[0]), token].set(True)
        return Decoding(logits, cache, now.key, seen), (token, chosen)
    decoding, (tokens, logprobs) = jax.lax.scan(advance, decoding, None, length=count)
    return decoding, sharding.constrain(tokens.T, None, None), sharding.constrain(logprobs.T, None, None)


class Sample(NamedTuple):
    """A continuation: its text, to be read right behind the prompt, its tokens, and their log-probabilities in nats.

    drafted: of a model that drafts, whether each token was a draft that passed, see speculation.
    """

    text: str
    tokens: list
    logprobs: list
    drafted: Sequence = ()


def generate(model, params, encoder, prompts, *, prefix=(), length=None, sampler=None, seed=0, stop=()):
    """Yields, after every few tokens, the list of Samples so far, one for each of `prompts`; the last list is whole.

    A row ends at the end-of-text token, before the first of the `stop` strings, or after `length` tokens (by default
    200, of a model that answers some 50 more than the longest prompt, or what learned positions leave); until then its
    text lacks what more tokens may still change, so that each text begins with the one before it. `prefix` are the ids
    that stand before each prompt, see Corpus.prefix; they are no part of a text, nor counted by a penalty on
    repetition. A model that drafts tokens ahead has them verified several at once.
    """
    sampler, stop = sampler or Sampler(), (stop,) if isinstance(stop, str) else stop
    padded, lengths, slots, length = prepare(model, encoder, prompts, prefix, length)
    unseen = len(prefix) if model.continues else 0
    first, more = (speculation.begin, speculation.extend) if model.ahead else (begin, extend)
    decoding, drawn = first(model, slots, params, (padded, lengths, np.int32(unseen)), jax.random.key(seed)), ()
    while not drawn or drawn[0].shape[1] < length:
        decoding, *parts = more(model, sampler, CHUNK, params, decoding)
        before = drawn or [part[:, :0] for part in parts]
        drawn = [np.concatenate(pair, 1)[:, :length] for pair in zip(before, parts, strict=True)]
        ends = [_finish(partial(text_of, model, encoder, prompt), encoder.eos, stop, *row)
                for prompt, *row in zip(prompts, *drawn, strict=True)]
        if all(ended for ended, _ in ends) or drawn[0].shape[1] == length:
            yield [sample for _, sample in ends]
            return
        yield [sample if ended else sample._replace(text=_settled(sample.text, stop)) for ended, sample in ends]


def prepare(model, encoder, prompts, prefix, length):
    """Returns (tokens [B T] of prompts, their lengths [B], slots of a cache, how many tokens to draw at most).

    Raises config.Error where they do not fit the model. A model that answers its prompts reads each as a whole text,
    with its end token.
    """
    encode = partial(_encode, encoder, prefix=prefix) if model.continues else partial(_question, encoder)
    encoded = [encode(prompt) for prompt in prompts]
    longest = max(map(len, encoded))
    before = longest if model.continues else 1
    length = _fitting(model, longest) if length is None else length
    width, slots = _room(model, longest, before, length)
    padded = np.zeros((len(encoded), width), np.int32)
    for row, tokens in zip(padded, encoded, strict=True):
        row[:len(tokens)] = tokens
    return padded, np.array([len(tokens) for tokens in encoded], np.int32), slots, length


def _fitting(model, longest):
    """Returns how many tokens to draw after prompts of up to `longest` where nobody says, or what fits: LENGTH, or MORE
    than the question and a few, so that few programs are compiled.
    """
    before, length = (longest, LENGTH) if model.continues else (1, _rounded(1 + longest + MORE) - 1)
    return min(length, max(model.limit + 1 - before, 1)) if model.limit else length


def _rounded(size):
    return -(-size // 64) * 64


def _room(model, prompt, before, length):
    """Returns (width, slots), in few different sizes, for prompts of up to `prompt` tokens and `length` more.

    before: how many tokens stand before those in their text.
    """
    if length < 1:
        raise config.Error(f'length={length} is not positive; try length=1 or more.')
    limit = model.limit
    if limit and max(prompt, before + length - 1) > limit:
        raise config.Error(f'a prompt of {prompt} tokens and length={length} do not fit {limit} positions; '
                           f'try {f"length={limit + 1 - before}" if prompt <= limit else "a shorter prompt"}.')
    width, slots = _rounded(prompt), _rounded(before + length)
    return min(width, limit or width), slots


def opening(prefix):
    """Returns the prompt where none is given: the beginning of a document, or of a line where no token marks that."""
    return '' if prefix else '\n'


def _encode(encoder, prompt, prefix):
    tokens = [*prefix, *encoder.encode(prompt)]
    if not tokens:
        raise config.Error('the prompt is empty and no token stood before a document in training; '
                           'give at least one character.')
    return tokens


def _question(encoder, prompt):
    if encoder.eos is None:
        raise config.Error('this tokenizer has no end token, behind which an answer begins; '
                           'try data.tokenizer=SentencePiece in training.')
    tokens = [int(token) for token in encoder.whole(prompt)]
    return tokens if tokens[-1:] == [encoder.eos] else [*tokens, encoder.eos]


def text_of(model, encoder, prompt, tokens):
    """Returns the text of tokens that a model drew after a prompt, to be read right behind it if it goes on with it."""
    prompt = prompt if model.continues else ''
    ids = encoder.encode(prompt).tolist()
    text = encoder.decode_after(ids, tokens.tolist())
    spaced = prompt[-1:].isspace() and not encoder.decode(ids)[-1:].isspace()  # WordPiece and Words drop it: 'Once '
    return text.removeprefix(' ') if spaced else text


def _finish(decode, eos, stop, tokens, *measured):
    """Returns (whether the row has ended, its Sample) of the tokens drawn so far, whose text decode(tokens) gives.

    measured: the other fields of the Sample, of each token.
    """
    end = len(tokens)
    ended = eos is not None and eos in tokens
    if ended:
        end = int(np.argmax(tokens == eos))
    text = decode(tokens[:end])
    cuts = [text.index(word) for word in stop if word in text]
    if cuts:
        text, ended = text[:min(cuts)], True
        end = next(n for n in range(end + 1) if decode(tokens[:n]).startswith(text))
    return ended, Sample(text, *(part[:end].tolist() for part in (tokens, *measured)))


def _settled(text, stop):
    """Returns text without an incomplete character and the beginning of a stop string at its end."""
    text = text.rstrip('\ufffd')
    return text[:len(text) - max((n for word in stop for n in range(len(word)) if text.endswith(word[:n])), default=0)]


def stream(prompt, drawn, out=None):
    """Prints a prompt and, as they grow, the texts of its Samples; returns the last."""
    out, text = sys.stdout if out is None else out, ''
    for (sample,) in drawn:
        shown, text = len(text), prompt + sample.text
        out.write(text[shown:])
        out.flush()
    out.write('\n')
    return sample
