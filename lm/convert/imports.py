"""A checkpoint of others as the directory of a run, which every verb then takes; weights are streamed, block by block.
"""
import contextlib
import shutil
from dataclasses import dataclass
from pathlib import Path

import jax

from lm import config, optim, trees
from lm.convert import checkpoints, start, tokenizers
from lm.data import Corpus, Source
from lm.train import Conditional, Config, MaskedLM, NextToken, checkpoint_stream, origin

CONTEXT = 2048  # of the data, where config.json does not limit it to less
WRITING = 'Error writing'  # in what tensorstore raises, a ValueError


@dataclass(frozen=True)
class Elsewhere(Source):
    """The text that a converted model was trained on, which is not there.

    origin: what was converted. begins: whether a text began with the tokenizer's `bos` there. longest: how many tokens
    one might have there, 0 for any number.
    """

    origin: str
    begins: bool = False
    longest: int = 0

    @property
    def label(self):
        return 'elsewhere'

    def parts(self):
        raise config.Error(f'the run was converted from {self.origin} and has no text of its own; score some with '
                           'lm eval RUN --text=FILES, or train on from it with start=From(RUN).')

    def prefix(self, encoder):
        return [encoder.bos] if self.begins and encoder.bos is not None else super().prefix(encoder)

    def fingerprint(self):
        return config.fingerprint(['elsewhere', self.origin])


def run_of(path, directory):
    """Writes the directory of a run of one step that has the weights and the tokenizer at a path; returns its Config.

    Raises config.Error where the checkpoint is not that of its config.json, or its tokenizer has more tokens than the
    model.
    """
    checkpoint, directory = start.opened(path), Path(directory)
    model = start.model_of(checkpoint)
    binding, tensor = start.bound(checkpoint, model)
    kept = tokenizers.of(checkpoint)
    encoder = tokenizers.encoder(kept)
    if encoder.size > model.vocab:
        raise config.Error(f'the tokenizer of {path} has {encoder.size} tokens and the embedding {model.vocab} rows; '
                           'put the tokenizer there that the weights were trained with.')
    with checkpoints.understood(path):
        longest = int(model.limit or checkpoint.config.get('max_position_embeddings') or 0)
    text, context = Elsewhere(str(path), kept.begins, longest), min(longest or CONTEXT, CONTEXT)
    if model.continues:
        objective = NextToken() if model.causal else MaskedLM(mask=encoder.vocabulary[kept.mask] if kept.mask else -1)
        packing = 'windows'
    else:
        objective, packing = Conditional(), 'pairs'
    shapes = jax.eval_shape(model.init, jax.random.key(0))

    def streamed(path):
        parameter = binding.parameters[path]
        return checkpoint_stream.Streamed(parameter.shape, lambda index: parameter.read(tensor, index),
                                          len(parameter.counted))
    with written(directory):
        tokenizer = tokenizers.keep(kept, directory / 'tokenizer')
        settings = Config(model, Corpus(text, text, tokenizer, context, 1, packing), optim.AdamW(), 1, objective)
        checkpoint_stream.save(directory / 'checkpoints', 1, jax.tree.map(streamed, trees.names(shapes)),
                               {'offset': 0, 'data': {}})
        origin.write(directory / 'config.json', settings)
    return settings


@contextlib.contextmanager
def written(directory):
    """Makes a directory, in which what is written is removed again unless all is.

    Raises config.Error where it holds anything, or cannot be written to, as on a full disk.
    """
    check_empty(directory)
    try:
        yield
    except BaseException as error:
        for path in directory.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        directory.rmdir()
        if isinstance(error, OSError) or WRITING in str(error):
            reason = getattr(error, 'strerror', None) or config.first_line(error).rpartition(': ')[2]
            raise config.Error(f'cannot write {directory}: {reason}; make room, or write elsewhere.') from error
        raise


def check_empty(directory):
    """Makes a directory; raises config.Error where it holds anything."""
    if directory.exists() and not directory.is_dir():
        raise config.Error(f'{directory} is a file; name a new directory.')
    try:
        directory.mkdir(parents=True, exist_ok=True)
        held = sorted(path.name for path in directory.iterdir())
    except OSError as error:
        raise config.Error(f'cannot write to {directory}: {error.strerror}; name another directory.') from error
    if held:
        raise config.Error(f'{directory} is not empty: it holds {", ".join(held[:5])}{", ..." * (len(held) > 5)}; name '
                           'a new directory.')
