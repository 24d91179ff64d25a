"""The cross entropy of the next token: causal language modelling."""
import sys
from dataclasses import dataclass
from functools import partial

from lm import config, evaluate, generate
from lm.models import ngram
from lm.parallel import processes
from lm.train.objectives.objective import TokenObjective


@dataclass(frozen=True)
class NextToken(TokenObjective):
    """Cross entropy of the next token.

    sample: prompt of the text shown at the end, '' for the beginning of a document. baselines: whether compressors are
    measured on the held-out text at the end.
    """

    sample: str = ''
    baselines: bool = False

    def check(self, model):
        if not model.causal:
            raise config.Error('attention with causal=false sees the token that it predicts; '
                               'try model.layer.attention.causal=true, or another objective.')

    def prepare(self, model, batch, key):
        return batch

    def scores(self, sums, stream):
        return evaluate.scores(sums, stream)

    def summary(self, scores, data):
        rows = {'this model': scores['bits_per_byte']} if 'bits_per_byte' in scores else {}
        if self.baselines:
            rows |= processes.decide(partial(_baselines, data))
        lossy = [] if 'bits_per_byte' in scores else ['      no bits per byte  this model: its tokenizer is lossy']
        return [f'validation loss {scores["loss"]:.4f}, perplexity {scores["perplexity"]:.2f}', *lossy,
                *(f'  {value:6.3f} bits per byte  {name}' for name, value in rows.items())]

    def show(self, model, params, encoder, prefix):
        prompt = self.sample or generate.opening(prefix)
        *_, (sample,) = generate.generate(model, params, encoder, [prompt], prefix=prefix,
                                          sampler=generate.Sampler(temperature=0.8))
        return prompt + sample.text


def _baselines(data):
    """Returns {name: bits per byte} of compressors on the held-out text; warns in one line where they fail."""
    try:
        train, valid = ([document.text.encode() for document in source.documents()]
                        for source in (data.train, data.valid))
        return ngram.bits_per_byte(train, valid)
    except Exception as error:
        print(f'lm: the run is finished, without its baselines: {config.first_line(error)}', file=sys.stderr)
        return {}
