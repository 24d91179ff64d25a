"""A fitted scaling law, its predictions and compute-optimal budgets, as text and JSON."""
import json as jsonlib
import math
import shlex
from typing import NamedTuple

import numpy as np

from lm import config, records
from lm.config.values import Text
from lm.pages.text import columns, short
from lm.scaling import laws, points


class Prediction(NamedTuple):
    """The predicted loss of a run of N parameters and D tokens, with its 95% interval; `run` is how it was named."""

    run: str
    n: float
    d: float
    loss: float
    interval: tuple


class Advice(NamedTuple):
    """The compute-optimal N, D and loss of a budget of FLOPs, with 95% intervals; `times` that of the largest run."""

    flops: float
    n: float
    n_interval: tuple
    d: float
    d_interval: tuple
    loss: float
    loss_interval: tuple
    times: float


class Findings(NamedTuple):
    """Points, their Fit, predictions, budgets, and the check on the most costly runs.

    held_out: (Prediction of the runs of most FLOPs from all others, their mean loss), None where too few remain.
    """

    points: points.Points
    fit: laws.Fit
    predictions: list
    advices: list
    held_out: tuple | None


def size_of(text):
    """Returns (text, N, D) of a text such as N=1e9,D=2e10."""
    try:
        sizes = {name.strip(): float(value) for name, value in (part.split('=') for part in text.split(','))}
    except ValueError:
        sizes = {}
    if sizes.keys() != {'N', 'D'} or not all(0 < value < math.inf for value in sizes.values()):
        raise config.Error(f'--at {text} is no size and length; write it as N=1e9,D=2e10.')
    return text, sizes['N'], sizes['D']


def overridden(text, runs):
    """Returns (text, N, D) of the run of most FLOPs of some Points with the overrides of a text."""
    changes = dict(word.partition('=')[::2] for word in shlex.split(text))
    if not changes or not all(changes.values()):
        raise config.Error(f"--predict {text!r} is no list of overrides; write it as 'model.width=512 steps=2000'.")
    largest = runs.trials[int(np.argmax(runs.n * runs.d))]
    settings = config.override(config.build(largest.about['config'], largest.directory / 'experiment.py'),
                               {key: Text(value) for key, value in changes.items()})
    tokens = settings.data.batch * settings.data.context * settings.steps
    return text, float(points.count(settings.model, runs.non_embedding)), float(tokens)


def advise(runs, fit, flops):
    """Returns the Advice of a Fit of Points for a budget of FLOPs."""
    if not 0 < flops < math.inf:
        raise config.Error(f'--budget={flops} is no number of FLOPs; try --budget=1e21.')
    (n, d), resampled = fit.law.optimum(flops), fit.resampled.optimum(flops)
    loss, interval = fit.predict(n, d)
    return Advice(flops, n, fit.interval(resampled[0]), d, fit.interval(resampled[1]), loss, interval,
                  flops / float(np.max(laws.FLOPS * runs.n * runs.d)))


def hold_out(runs):
    """Returns (Prediction from all others, mean loss) of the runs of most FLOPs; None where the others are too few."""
    product = runs.n * runs.d
    kept = product < product.max()
    if kept.sum() < laws.LEAST or min(len(set(runs.n[kept])), len(set(runs.d[kept]))) < 3:
        return None
    n, d = runs.n[~kept][0], runs.d[~kept][0]
    name = runs.trials[int(np.argmax(product))].name
    return Prediction(name, n, d, *laws.fit(*runs.only(kept)).predict(n, d)), float(runs.loss[~kept].mean())


def coefficients(fit):
    """Returns {name: (value, 95% interval)} of all coefficients and of the exponent of the compute-optimal N."""
    names = [*laws.Law._fields, 'share']
    return {name: (getattr(fit.law, name), fit.interval(getattr(fit.resampled, name))) for name in names}


def notes(findings):
    """Returns the caveats of the numbers, [text]."""
    runs, fit = findings.points, findings.fit
    texts = [f'{name} is at the bound of its range: these runs do not determine how the loss falls with {letter}; '
             f'add runs of more different {letter}.'
             for name, letter in (('alpha', 'N'), ('beta', 'D'))
             if not 1.01 * laws.EXPONENTS[0] < getattr(fit.law, name) < 0.99 * laws.EXPONENTS[1]]
    far = [row for row in findings.predictions if row.n * row.d > 100 * (runs.n * runs.d).max()]
    if far or any(advice.times > 100 for advice in findings.advices):
        texts.append('More than 100 times the FLOPs of the largest run: the interval assumes that the law still holds.')
    if runs.flops:
        texts.append('FLOPs are 6 N D; counted, these runs take {:.1f} to {:.1f} per parameter and token.'
                     .format(*runs.flops))
    return texts


def as_json(findings):
    """Returns Findings as JSON."""
    runs, fit = findings.points, findings.fit
    about = {'metric': runs.metric, 'parameters': 'non-embedding' if runs.non_embedding else 'all',
             'coefficients': {name: {'value': value, 'interval': interval}
                              for name, (value, interval) in coefficients(fit).items()},
             'noise': fit.noise, 'flops_per_parameter_and_token': runs.flops,
             'held_out': findings.held_out and {**findings.held_out[0]._asdict(),
                                                   'reached': findings.held_out[1]},
             'predicted': [prediction._asdict() for prediction in findings.predictions],
             'budgets': [advice._asdict() for advice in findings.advices],
             'runs': [{'run': trial.name, 'n': float(n), 'd': float(d), 'loss': float(loss)} for trial, n, d, loss
                      in zip(runs.trials, runs.n, runs.d, runs.loss, strict=True)],
             'left': [list(row) for row in runs.left_out], 'notes': notes(findings)}
    return jsonlib.dumps(records.finite(about), indent=1)


def as_text(findings):
    """Returns Findings as text: the law, how well it predicts, predictions and budgets."""
    runs = findings.points
    parts = [opening(runs), columns(('', 'value', '95%'), law_rows(findings.fit)), accuracy(findings)]
    if findings.predictions:
        parts.append(columns(PREDICTION, [prediction_row(prediction) for prediction in findings.predictions]))
    if findings.advices:
        parts.append(columns(ADVICE, [advice_row(advice) for advice in findings.advices]))
    parts.append('\n'.join(notes(findings)))
    if runs.left_out:
        parts.append('left out\n' + columns(('', ''), runs.left_out))
    return '\n\n'.join(part for part in parts if part)


def opening(runs):
    """Returns the line that tells which law was fitted to which Points."""
    kind = 'parameters between embedding and output' if runs.non_embedding else 'all parameters'
    return (f'{runs.metric} = E + A / N^alpha + B / D^beta over {len(runs.n)} finished runs; '
            f'N {kind}: {short(runs.n.min())} to {short(runs.n.max())} ({len(set(runs.n))} sizes); '
            f'D training tokens: {short(runs.d.min())} to {short(runs.d.max())} ({len(set(runs.d))} lengths)')


def law_rows(fit):
    """Returns rows (name, value, interval) of the coefficients and of the exponent of the compute-optimal N."""
    rows = [(name, short(value), span(interval, short)) for name, (value, interval) in coefficients(fit).items()]
    *rows, (_, share, interval) = rows
    return [*rows, ('exponent of the best N in C', share, interval)]


def accuracy(findings):
    """Returns the line that tells how well the law fits, and how well it predicts the most costly runs held out."""
    fitted = f'runs deviate {findings.fit.noise:.2%} from the law (standard deviation)'
    if not findings.held_out:
        return f'{fitted}; too few runs to hold the largest out'
    prediction, loss = findings.held_out
    return (f'{fitted}; held out, {prediction.run} of most FLOPs: predicted {prediction.loss:.4f} '
            f'{span(prediction.interval)} from the others, reached {loss:.4f}')


PREDICTION = ('run', 'N', 'D', 'loss', '95% of such a run')
ADVICE = ('FLOPs', 'best N', '95%', 'best D', '95%', 'tokens per parameter', 'loss', '95% of such a run',
          'times the largest run')


def prediction_row(prediction):
    """Returns the row of a Prediction under PREDICTION."""
    return (prediction.run, short(prediction.n), short(prediction.d), f'{prediction.loss:.4f}',
            span(prediction.interval))


def advice_row(advice):
    """Returns the row of an Advice under ADVICE."""
    return (f'{advice.flops:.3g}', short(advice.n), span(advice.n_interval, short), short(advice.d),
            span(advice.d_interval, short), f'{advice.d / advice.n:.3g}', f'{advice.loss:.4f}',
            span(advice.loss_interval), f'{advice.times:.3g}')


def span(interval, written='{:.4f}'.format):
    """Returns an interval as text."""
    return f'[{written(interval[0])}, {written(interval[1])}]'
