"""Encoders of every kind of tokenizer, trained on small texts once a process."""
import functools
import tempfile

import pytest

from lm import data

CONTROLS = ('<eos>', '</s>', '<s>', '<unk>', '<|endoftext|>', '<0x0A>', '<bos>', '<|user|>', '[INST]')


def training_text():
    return [' '.join(document.text for document in data.Synthetic(100, 1500).documents()), *CONTROLS * 300,
            'def f(x):\n    return x + 1\n\n\n' * 100]


@functools.cache
def piece_encoder(kind, alpha=0.0):
    return data.SentencePiece(size=512, kind=kind, alpha=alpha).fit(training_text(), tempfile.mkdtemp())


@functools.cache
def json_file():
    hf = pytest.importorskip('tokenizers')
    tokenizer = hf.Tokenizer(hf.models.BPE())
    tokenizer.pre_tokenizer = hf.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = hf.decoders.ByteLevel()
    trainer = hf.trainers.BpeTrainer(vocab_size=600, show_progress=False, special_tokens=['<|endoftext|>'],
                                     initial_alphabet=hf.pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(training_text(), trainer)
    tokenizer.add_tokens([hf.AddedToken('<|user|>', special=False)])
    path = f'{tempfile.mkdtemp()}/tokenizer.json'
    tokenizer.save(path)
    return path


@functools.cache
def json_encoder():
    return data.HuggingFace(json_file()).fit((), tempfile.mkdtemp())


COMPLETE = {'bytes': lambda: data.Bytes().fit((), '.'), 'unigram': lambda: piece_encoder('unigram'),
            'bpe': lambda: piece_encoder('bpe'), 'sampled unigram': lambda: piece_encoder('unigram', 0.3),
            'sampled bpe': lambda: piece_encoder('bpe', 0.1), 'json': json_encoder,
            'controls': lambda: data.Controls(data.Bytes(), ('<mask>', '</s>')).fit((), '.')}
