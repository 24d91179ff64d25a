"""`lm eval`: how well a trained run predicts held-out text."""
import dataclasses
import json

from lm import config
from lm.data import Files
from lm.data import cache as caches
from lm.train import NextToken, runs

PROCESSES = True  # several processes may run it as one


def main(run: str, *, split: str = 'valid', text: str = '', step: int = 0, stride: int = 0, cache: str = '',
         trust: bool = False):
    """Scores a trained run on held-out text: loss, perplexity, and bits per byte or why there are none.

    Args:
        run: the --workdir of an `lm train`
        split: which text, valid or train
        text: other files to score instead, a path or a glob as of data.Files
        step: the checkpoint to score, 0 for the newest
        stride: slide the window by this many tokens, so that each token is predicted from at least context - stride
            tokens of its document; 0 cuts the text into windows once
        cache: directory of token caches, by default $LM_CACHE or ~/.cache/lm
        trust: execute the run's own code, where its model or another part is defined in its experiment
    """
    trained = runs.load(run, step, trust=trust)
    data, objective = trained.settings.data, trained.settings.objective
    if stride and not isinstance(objective, NextToken):
        raise config.Error(f'--stride={stride} leaves tokens unscored that {type(objective).__name__} would take for '
                           'padding; leave it out.')
    if text:
        source, split = Files(text), text
        parts = [caches.build(leaf, trained.encoder, caches.root(cache)) for leaf, _ in source.parts()]
        shortest = min(part.tokens.size for part in parts)
        data = dataclasses.replace(data, context=min(data.context, max(shortest - 1, 1)))  # a short text is one row
        stream = data.arrange(source, trained.encoder, parts, 'valid').once(stride)
    else:
        stream = data.open(caches.root(cache), split).once(stride)
    scores = objective.score(trained.settings.model, trained.params, stream, trained.mesh)
    if stream.lost:
        scores['no_bits_per_byte'] = stream.lost
    print(json.dumps({'run': run, 'step': trained.step, 'split': split, **scores}, indent=1))
