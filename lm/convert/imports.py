"""A checkpoint of others as the directory of a run, which every verb then takes; weights are streamed, block by block.
"""
from dataclasses import dataclass
from pathlib import Path

import jax

from lm import config, optim, trees
from lm.convert import families, start, tokenizers
from lm.data import Corpus, Source
from lm.train import Config, MaskedLM, NextToken, checkpoint_stream, origin

CONTEXT = 2048  # of the data, where config.json does not limit it to less


@dataclass(frozen=True)
class Elsewhere(Source):
    """The text that a converted model was trained on, which is not there.

    origin: what was converted. begins: whether a text began with the tokenizer's `bos` there.
    """

    origin: str
    begins: bool = False

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
    check_empty(directory)
    tokenizer = tokenizers.keep(kept, directory / 'tokenizer')
    text = Elsewhere(str(path), kept.begins)
    context = min(checkpoint.config.get('max_position_embeddings') or model.limit or CONTEXT, CONTEXT)
    plain = NextToken() if model.causal else MaskedLM(mask=encoder.vocabulary[kept.mask] if kept.mask else -1)
    objective = getattr(families.of(checkpoint.config, path), 'OBJECTIVE', plain)
    settings = Config(model, Corpus(text, text, tokenizer, context, 1), optim.AdamW(), steps=1, objective=objective)
    shapes = jax.eval_shape(model.init, jax.random.key(0))

    def streamed(path):
        parameter = binding.parameters[path]
        return checkpoint_stream.Streamed(parameter.shape, lambda index: parameter.read(tensor, index),
                                          len(parameter.counted))
    checkpoint_stream.save(directory / 'checkpoints', 1, jax.tree.map(streamed, trees.names(shapes)),
                           {'offset': 0, 'data': {}})
    origin.write(directory / 'config.json', settings)
    return settings


def check_empty(directory):
    """Makes a directory; raises config.Error where it holds anything."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        held = sorted(path.name for path in directory.iterdir())
    except OSError as error:
        raise config.Error(f'cannot write to {directory}: {error.strerror}; name another directory.') from error
    if held:
        raise config.Error(f'{directory} is not empty: it holds {", ".join(held[:5])}{", ..." * (len(held) > 5)}; name '
                           'a new directory.')
