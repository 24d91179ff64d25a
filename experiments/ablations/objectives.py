"""What a small stack should be trained for: six objectives at equal layers, tokens and, nearly, FLOPs, five seeds.

    lm sweep experiments/ablations/objectives.py --together=5
    python -m experiments.ablations.objectives runs/objectives_sweep

The files are wikitext-2's train.txt and test.txt, compressed, and TREC's questions (Li and Roth 2002), in the folder of
data sets (docs/data.md). Four layers of width 64 (two and two of the TextVae), 614,400 tokens at one rate, so that a
better rate may move any line; 25 CPU minutes on two shared cores, and 7 for the second command. Bits a byte of a fifth
of the test text, by the whole likelihood or a bound of it, which do not compare, and the share of TREC's questions
whose class a linear probe tells; means of five seeds with 95% intervals:

    NextToken        2.139 ± 0.005  exact   0.592 ± 0.021
    PrefixLM         2.304 ± 0.005  exact   0.600 ± 0.011
    Elbo             2.542 ± 0.021  bound   0.481 ± 0.026
    MaskedDiffusion  2.981 ± 0.078  bound   0.482 ± 0.045
    MaskedLM                                0.551 ± 0.024
    SpanCorruption                          0.526 ± 0.018
    no training                             0.562 ± 0.047

With so few tokens no objective is shown to tell the classes better than vectors that were not trained.
"""
import collections
import pathlib
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from experiments.ablations import small
from lm import data, optim, train
from lm.config import paths
from lm.data import cache as caches
from lm.models import Decoder, Half, Layer, TextVae
from lm.nn import MLP, Attention, Relu2, RMSNorm
from lm.report import statistics
from lm.sweep import grid
from lm.train import runs

CONTROLS = tuple(f'<{number}>' for number in range(5))  # the mask is the last, which is the first sentinel too
WIDTH, LENGTH = 64, 64


def stack(depth, causal=True):
    layer = Layer(Attention(heads=4, qk_norm=RMSNorm(), causal=causal), MLP(activation=Relu2()))
    return {'depth': depth, 'layer': layer}


def config():
    return train.Config(
        model=Decoder(vocab=1024, width=WIDTH, **stack(4)),
        data=data.Corpus(train=data.Files('wikitext2/train.txt.gz'),
                         valid=data.Cut(data.Files('wikitext2/test.txt.gz'), 0.0, 0.2),
                         tokenizer=data.Controls(data.SentencePiece(size=1024 - len(CONTROLS)), CONTROLS),
                         context=LENGTH, batch=16),
        optimizer=optim.Muon(peak=1e-2, schedule=optim.Linear(warmup=50, end=0.0), weight_decay=0.1, adam_rate=0.5),
        steps=600, cadence=train.Cadence(log=50))


def sweep():
    both = {'model.layer.attention.causal': False}
    prompted = {'model.prompt': 'bidirectional'}
    vae = TextVae(vocab=1024, latent=WIDTH, width=WIDTH, encoder=Half(**stack(2, causal=False)),
                  decoder=Half(**stack(2)))
    return grid([{}, {**prompted, 'objective': train.PrefixLM()},
                 {**prompted, 'objective': train.SpanCorruption(sentinels=len(CONTROLS))},
                 {**both, 'objective': train.MaskedLM()}, {**both, 'objective': train.MaskedDiffusion()},
                 {'model': vae, 'objective': train.Elbo(anneal=300, free=0.1, draws=16)}], small.SEEDS)


def bits_per_byte(run):
    """Returns (kind, bits a byte of the test text), of the whole likelihood or a bound of it; (kind, None) of none."""
    settings = run.settings
    objective = settings.objective
    if isinstance(objective, train.PrefixLM):
        objective = train.NextToken()  # after a prefix of nothing
    stream = settings.data.open(caches.root(''), 'valid').once(0)
    scores = objective.score(settings.model, run.params, stream, run.mesh)
    return next(((kind, scores[name]) for kind, name in (('exact', 'bits_per_byte'), ('bound', 'bits_per_byte_bound'))
                 if name in scores), ('none', None))


def questions(name):
    """Returns (texts, numbers of their six classes) of a file of TREC's."""
    lines = paths.read(f'trec/TREC.{name}', 'file of questions').decode('latin-1').splitlines()
    labels, texts = zip(*(line.split(' ', 1) for line in lines), strict=True)
    names = ['ABBR', 'DESC', 'ENTY', 'HUM', 'LOC', 'NUM']
    return texts, np.array([names.index(label.partition(':')[0]) for label in labels])


@partial(jax.jit, static_argnums=0)
def pooled(model, params, tokens, present):
    """Returns [B D] for rows of tokens: of a TextVae its posterior's means, else the means of last states."""
    if isinstance(model, TextVae):
        return model.posterior(params, tokens, present)[0]
    bidirectional = {'prefix': present > 0} if model.prompt == 'bidirectional' else {}
    states = model.states(params, {'inputs': tokens, 'segments': present, **bidirectional})
    return jnp.einsum('BTD,BT->BD', states.x, present) / jnp.sum(present, 1, keepdims=True)


def vectors(run, texts, rows=500):
    """Returns the `pooled` vectors of texts [N D], of their first tokens."""
    tokens, present = np.zeros((2, -(-len(texts) // rows) * rows, LENGTH), np.int32)
    for row, text in enumerate(texts):
        ids = run.encoder.whole(text)[:LENGTH]
        tokens[row, :len(ids)], present[row, :len(ids)] = ids, 1
    parts = [pooled(run.settings.model, run.params, *pair)
             for pair in zip(*(np.split(array, len(array) // rows) for array in (tokens, present)), strict=True)]
    return np.concatenate(parts)[:len(texts)]


def probe(run):
    """Returns the share of TREC's 500 test questions whose class a linear probe of `vectors` tells.

    It is a ridge regression onto the classes of 5,452 questions, its strength the best on the last 1,000 of those.
    """
    (texts, labels), (others, wanted) = questions('train'), questions('test')
    x, held = vectors(run, texts), vectors(run, others)
    mean, scale = x.mean(0), x.std(0) + 1e-6
    x, held = (np.append((part - mean) / scale, np.ones((len(part), 1)), 1) for part in (x, held))

    def accuracy(count, strength, to, right):
        rows = x[:count]
        weights = np.linalg.solve(rows.T @ rows + strength * np.eye(rows.shape[1]), rows.T @ np.eye(6)[labels[:count]])
        return np.mean(np.argmax(to @ weights, 1) == right)
    best = max(10.0 ** np.arange(-2, 5), key=lambda strength: accuracy(-1000, strength, x[-1000:], labels[-1000:]))
    return accuracy(len(x), best, held, wanted)


def main(directory):
    """Prints a line for each objective of a sweep, and one for models that were not trained."""
    measured = collections.defaultdict(list)
    for place in sorted(pathlib.Path(directory).glob('*/checkpoints')):
        run = runs.load(place.parent, trust=True)
        kind, bits = bits_per_byte(run)
        measured[type(run.settings.objective).__name__, kind].append((bits, probe(run)))
        if isinstance(run.settings.objective, train.NextToken):
            untrained = run.settings.model.init(jax.random.key(run.settings.seed))
            measured['no training', 'none'].append((None, probe(run._replace(params=untrained))))
    for (name, kind), rows in measured.items():
        print(f'{name:16} {kind:6}', *(f'{np.mean(column):.3f} ± {half_width(column):.3f}' if None not in column
                                        else ' ' * 13 for column in zip(*rows, strict=True)))


def half_width(values):
    """Returns half the width of the 95% interval of a mean, by Student's t."""
    return statistics.interval(0.0, np.std(values, ddof=1) / len(values) ** 0.5, len(values) - 1)[1]


if __name__ == '__main__':
    main(sys.argv[1])
