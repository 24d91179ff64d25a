"""`lm ngram`: how well counting predicts held-out text, the mark for models trained on the same tokens."""
import json

import numpy as np

from lm import config, evaluate
from lm.data.cache import root
from lm.data.corpus import Corpus
from lm.models import ngram


def main(experiment: str, *overrides: str, order: int = 5, split: str = 'valid', cache: str = ''):
    """Counts the n-grams of an experiment's training text and scores its held-out text, as `lm eval` does a model.

    Args:
        experiment: the experiment file
        overrides: values to set, e.g. data.tokenizer.size=8192
        order: how many tokens an n-gram has at most
        split: which text to score, valid or train
        cache: directory of token caches, by default $LM_CACHE or ~/.cache/lm
    """
    if order < 1:
        raise config.Error(f'--order={order} counts nothing; try --order={ngram.ORDER}.')
    corpus = getattr(config.load(experiment, overrides).config, 'data', None)
    if not isinstance(corpus, Corpus):
        raise config.Error(f'{experiment}: config() returned nothing with data; return train.Config(data=...).')
    train, held = corpus.open(root(cache)), corpus.open(root(cache), split)
    sizes = [np.diff(part.offsets) for part in train.caches]
    bounds = np.cumsum(np.concatenate([[0], *sizes]))
    model = ngram.fit(np.concatenate([part.tokens for part in train.caches]), bounds, train.encoder.size, order)
    sums = [(-model.log_chances(part.tokens, part.offsets).sum(), part.tokens.size) for part in held.caches]
    scores = evaluate.scores(np.array(sums), held.once())
    print(json.dumps({'experiment': experiment, 'order': order, 'split': split, **scores}, indent=1))
