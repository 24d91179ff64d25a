"""Finished runs as points (N, D, loss): for each N and D, of the settings of most seeds those of lowest mean loss."""
import json
import math
import os
from typing import NamedTuple

import numpy as np

from lm import config
from lm.report import costs, trials
from lm.scaling import laws

BETTER = 'of lower loss than the settings taken of the same N and D, but of fewer seeds'


class Points(NamedTuple):
    """Runs with `n` parameters, `d` training tokens and final `loss`, each [P].

    left_out: [(run, why)]. flops: (least, most) counted training FLOPs per parameter and token, None if unknown.
    non_embedding: whether N leaves out the parameters of vocabulary and positions.
    """

    trials: list
    n: np.ndarray
    d: np.ndarray
    loss: np.ndarray
    metric: str
    left_out: list
    flops: tuple | None
    non_embedding: bool

    def only(self, kept):
        """Returns n, d and loss of the points where `kept` [P] is true."""
        return self.n[kept], self.d[kept], self.loss[kept]


def read(directories, metric='valid/loss', non_embedding=False, trust=False):
    """Returns the Points of run directories; raises config.Error where a law cannot be fitted to them.

    trust: whether the runs' own code may be executed, where a model is defined in an experiment.
    """
    runs, missing = trials.read(directories, trust)
    left_out = [(trial.name, f'{trial.state}: {trial.why}') for trial in runs if trial.state != 'finished']
    left_out += [(path.name, why) for path, why in missing.items()]
    done = [trial for trial in runs if trial.state == 'finished']
    _check_comparable(done, metric)
    left_out += [(trial.name, _flaw(trial, metric)) for trial in done if _flaw(trial, metric)]
    done = [trial for trial in done if not _flaw(trial, metric)]
    sizes = _sizes(done, non_embedding)
    left_out += [(trial.name, sizes[_key(trial)]) for trial in done if isinstance(sizes[_key(trial)], str)]
    groups = {}
    for trial in done:
        if not isinstance(sizes[_key(trial)], str):
            size = sizes[_key(trial)], trial.tokens_per_step * trial.settings['steps']
            groups.setdefault(size, {}).setdefault(json.dumps(trial.settings, sort_keys=True), []).append(trial)
    rows = []
    for size, variants in sorted(groups.items()):
        best, others = _best(variants.values(), metric)
        rows += [(trial, *size, trial.final[metric]) for trial in best]
        left_out += others
    chosen, n, d, loss = zip(*rows, strict=True) if rows else ((),) * 4
    n, d = np.array(n, float), np.array(d, float)
    _check_enough(n, d, left_out)
    return Points(list(chosen), n, d, np.array(loss), metric, left_out, _flops(chosen, n), non_embedding)


def count(model, non_embedding=False):
    """Returns the number of parameters of a model without padding; non_embedding: without vocabulary and positions.

    The default is all of them, as in Hoffmann et al.: leaving the embedding out bends the law for small models (Pearce
    and Song 2024, arXiv 2406.12907).
    """
    os.environ.setdefault('JAX_PLATFORMS', 'cpu')  # only shapes are computed; leave accelerators free
    import jax
    shapes = jax.tree.leaves(jax.eval_shape(model.init, jax.random.key(0)))
    axes = jax.tree.leaves(model.axes(), is_leaf=lambda x: isinstance(x, tuple))
    return sum(math.prod(model.vocab if name == 'vocab' else size for name, size in zip(names, leaf.shape, strict=True))
               for names, leaf in zip(axes, shapes, strict=True)
               if not (non_embedding and {'vocab', 'position'} & {*names}))


def _flaw(trial, metric):
    """Returns why the final value of a metric is no loss of a law, '' where it is one."""
    if metric not in trial.final:
        return f'{metric} is not recorded at its end'
    value = trial.final[metric]
    if value is None:
        return f'{metric} is not finite at its end'
    return '' if value > 0 else f'{metric} is {value:g} at its end; the law is of the logarithm of positive losses'


def _best(variants, metric):
    """Returns ([Trial] of the settings of least mean loss among those of most seeds, [(run, why)] of the others).

    Among single seeds the least loss is also the luckiest: one run does not beat the mean of several.
    """
    mean = lambda group: np.mean([trial.final[metric] for trial in group])
    seeds = lambda group: len({trial.seed for trial in group})
    best, *others = sorted(variants, key=lambda group: (-seeds(group), mean(group)))
    worse = 'other settings of the same N and D did better'
    return best, [(trial.name, BETTER if mean(group) < mean(best) else worse) for group in others for trial in group]


def _key(trial):
    return json.dumps({key: value for key, value in trial.settings.items() if key.split('.')[0] == 'model'},
                      sort_keys=True)


def _sizes(done, non_embedding):
    """Returns {_key: parameters} of the models of trials, or why one cannot be built."""
    sizes = {}
    for key, trial in {_key(trial): trial for trial in done}.items():
        try:
            sizes[key] = count(trial.model(), non_embedding)
        except Exception as error:  # of a model of the experiment's own
            sizes[key] = f'its parameters cannot be counted: {config.first_line(error)}'
    return sizes


def _flops(chosen, n):
    """Returns (least, most) counted training FLOPs per parameter and token of trials, None if unknown."""
    counted = costs.per_token(chosen)
    ratios = [counted[costs.key(trial.settings)] / size for trial, size in zip(chosen, n, strict=True)
              if costs.key(trial.settings) in counted]
    return (min(ratios), max(ratios)) if ratios else None


def _check_comparable(done, metric):
    if not done:
        raise config.Error('no run is finished, and a loss before the end is biased by the schedule; '
                           'run the same `lm train` or `lm sweep` command to resume.')
    names = sorted({name for trial in done for name in trial.final if name.startswith('valid/')})
    if metric not in names:
        raise config.Error(f'no finished run has recorded {metric!r} at its end; there are {", ".join(names)}.')
    trials.check_alike(done, 'data.valid', 'leave some out')
    if metric != 'valid/bits_per_byte':
        trials.check_alike(done, 'data.tokenizer', 'give --metric=valid/bits_per_byte')


def _check_enough(n, d, left_out):
    why = f' ({len(left_out)} left out, the first: {left_out[0][0]}, {left_out[0][1]})' if left_out else ''
    for values, what, remedy in ((n, 'N, parameters', '--over model.width=32,64,128'),
                                 (d, 'D, tokens', '--over steps=500,1000,2000')):
        kinds = sorted(set(values))
        if len(kinds) < 3:
            listed = ' and '.join(f'{value:,.0f}' for value in kinds) or 'none'
            raise config.Error(f'the {len(values)} usable runs are of too few {what}: {listed}{why}; a law needs 3 '
                               f'different or more: add {3 - len(kinds)}, as by `lm sweep` with {remedy}.')
    if abs(np.corrcoef(np.log(n), np.log(d))[0, 1]) > 0.98:
        raise config.Error('N and D of these runs grow together, so that their terms in the loss cannot be separated; '
                           'add runs of one N on several D.')
    points = len(set(zip(n, d, strict=True)))
    if points < laws.LEAST:
        raise config.Error(f'usable runs of {points} different N and D{why} do not determine 5 coefficients; add '
                           f'{laws.LEAST - points} or more of other sizes and lengths.')
