"""Sequence to sequence: a target text, given its source (Sutskever et al. 2014, arXiv:1409.3215)."""
from dataclasses import dataclass

from lm import config, generate
from lm.train.objectives.objective import TokenObjective


@dataclass(frozen=True)
class Answer(TokenObjective):
    """Base of the objectives of models that read one text and write another."""

    def check(self, model):
        if model.continues or not model.causal:
            raise config.Error(f'{type(model).__name__} does not read one text and write another; '
                               'try model=EncoderDecoder.')


@dataclass(frozen=True)
class Conditional(Answer):
    """Cross entropy of the tokens of a target, given those before them and its source.

    sample: a source, whose target is written and shown at the end of a run; '' for none.
    """

    sample: str = ''

    def prepare(self, model, batch, key):
        return batch

    def show(self, model, params, encoder, prefix):
        if not self.sample:
            return ''
        (written,) = generate.beam_search(model, params, encoder, [self.sample])
        return f'{self.sample}\n{written}'
