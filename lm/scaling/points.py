"""Finished runs as points (N, D, loss): of each size and length the settings that did best, with all their seeds."""
import json
import math
import os
from typing import NamedTuple

import numpy as np

from lm import config
from lm.report import costs, trials
from lm.scaling import laws


class Points(NamedTuple):
    """Runs with what each cost and reached: `n` parameters, `d` tokens seen, `loss`, each [P].

    left: [(run, why)] of those that are no points. flops: the least and the most FLOPs a parameter and token that these
    runs were counted to take, None where they cannot be counted. inside: whether N leaves out what embeds and scores.
    """

    trials: list
    n: np.ndarray
    d: np.ndarray
    loss: np.ndarray
    metric: str
    left: list
    flops: tuple | None
    inside: bool

    def only(self, kept):
        """Returns n, d and loss of the points where `kept` [P] is true."""
        return self.n[kept], self.d[kept], self.loss[kept]


def read(directories, metric='valid/loss', inside=False):
    """Returns the Points of run directories; raises config.Error where a law cannot be fitted to them."""
    found = trials.read(directories)
    left = [(trial.name, f'{trial.state}: {trial.why}') for trial in found if trial.state != 'finished']
    left += [(name, 'not begun') for name in trials.waiting(directories)]
    done = [trial for trial in found if trial.state == 'finished']
    _check_comparable(done, metric)
    left += [(trial.name, f'{metric} is not finite at its end') for trial in done if not _reached(trial, metric)]
    done = [trial for trial in done if _reached(trial, metric)]
    sizes = _sizes(done, inside)
    left += [(trial.name, 'its model cannot be built any more') for trial in done if not sizes[_key(trial)]]
    groups = {}
    for trial in done:
        if sizes[_key(trial)]:
            place = sizes[_key(trial)], trial.tokens_per_step * trial.settings['steps']
            groups.setdefault(place, {}).setdefault(json.dumps(trial.settings, sort_keys=True), []).append(trial)
    rows = []
    for place, variants in sorted(groups.items()):
        best, *others = sorted(variants.values(), key=lambda group: np.mean([_reached(t, metric) for t in group]))
        rows += [(trial, *place, _reached(trial, metric)) for trial in best]
        left += [(trial.name, 'other settings of the same N and D did better') for group in others for trial in group]
    chosen, n, d, loss = zip(*rows, strict=True) if rows else ((),) * 4
    _check_enough(np.array(n, float), np.array(d, float), left)
    flops = _flops(chosen, n)
    return Points(list(chosen), np.array(n, float), np.array(d, float), np.array(loss), metric, left, flops, inside)


def count(model, inside=False):
    """Returns how many parameters a model has, without padding; `inside` without those of a vocabulary or position.

    All are the usual N, as in Hoffmann et al.: a tied table is multiplied by for every token, and leaving it out bends
    the law where models are small (Pearce and Song 2024, arXiv 2406.12907).
    """
    os.environ.setdefault('JAX_PLATFORMS', 'cpu')  # shapes alone are read: accelerators are left to those who train
    import jax
    shapes = jax.tree.leaves(jax.eval_shape(model.init, jax.random.key(0)))
    axes = jax.tree.leaves(model.axes(), is_leaf=lambda x: isinstance(x, tuple))
    return sum(math.prod(model.vocab if name == 'vocab' else size for name, size in zip(names, leaf.shape, strict=True))
               for names, leaf in zip(axes, shapes, strict=True)
               if not (inside and {'vocab', 'position'} & {*names}))


def _reached(trial, metric):
    """Returns what a finished trial recorded at its end, None where that is not finite."""
    return {metric: None, **trial.final}[metric]


def _key(trial):
    return json.dumps({key: value for key, value in trial.settings.items() if key.split('.')[0] == 'model'},
                      sort_keys=True)


def _sizes(done, inside):
    """Returns {model: parameters} of trials, None for a model of a kind that no longer exists."""
    found = {}
    for key, trial in {_key(trial): trial for trial in done}.items():
        try:
            found[key] = count(config.build(trial.about['config']['model'], trial.directory / 'experiment.py'), inside)
        except (config.Error, AttributeError, TypeError):
            found[key] = None
    return found


def _flops(chosen, n):
    counted = costs.per_token(chosen) or {}
    ratios = [counted[costs.key(trial.settings)] / size for trial, size in zip(chosen, n, strict=True)
              if costs.key(trial.settings) in counted]
    return (min(ratios), max(ratios)) if ratios else None


def _check_comparable(done, metric):
    if not done:
        raise config.Error('no run is finished, and a loss before the end is biased by the schedule; '
                           'the same `lm train` or `lm sweep` line goes on.')
    names = sorted({name for trial in done for name in trial.final if name.startswith('valid/')})
    if metric not in names:
        raise config.Error(f'no finished run has recorded {metric!r} at its end; there are {", ".join(names)}.')
    trials.check_alike(done, 'data.valid', 'leave some out')
    if metric != 'valid/bits_per_byte':
        trials.check_alike(done, 'data.tokenizer', 'give --metric=valid/bits_per_byte')


def _check_enough(n, d, left):
    gone = f' ({len(left)} left out, the first: {left[0][0]}, {left[0][1]})' if left else ''
    for values, what, remedy in ((n, 'N, parameters', '--over model.width=32,64,128'),
                                 (d, 'D, tokens', '--over steps=500,1000,2000')):
        kinds = sorted(set(values))
        if len(kinds) < 3:
            told = ' and '.join(f'{value:,.0f}' for value in kinds) or 'none'
            raise config.Error(f'the {len(values)} usable runs are of too few {what}: {told}{gone}; a law needs 3 '
                               f'different or more: add {3 - len(kinds)}, as by `lm sweep` with {remedy}.')
    if len(n) < laws.LEAST:
        raise config.Error(f'{len(n)} usable runs{gone} do not settle 5 coefficients; add {laws.LEAST - len(n)} or '
                           'more of other sizes and lengths.')
    if abs(np.corrcoef(np.log(n), np.log(d))[0, 1]) > 0.98:
        raise config.Error('N and D of these runs grow together, so that their parts in the loss cannot be told apart; '
                           'add runs of one N on several D.')
