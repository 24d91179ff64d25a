"""A fitted scaling law, its predictions and compute-optimal budgets, as text and JSON."""
import json as jsonlib
import math
import shlex
from typing import NamedTuple

import numpy as np

from lm import config, records
from lm.config.values import Text
from lm.pages.text import columns, short
from lm.scaling import backtests, laws, points

WARNED = 3  # times the FLOPs of the largest run


class Prediction(NamedTuple):
    """The predicted loss of a run of N parameters and D tokens, with its 95% interval.

    run: how it was named. times: its FLOPs over those of the largest run.
    """

    run: str
    n: float
    d: float
    loss: float
    interval: tuple
    times: float


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
    """Points, their Fit, predictions, budgets, and Backtests."""

    points: points.Points
    fit: laws.Fit
    predictions: list
    advices: list
    backtests: list


def size_of(text):
    """Returns (text, N, D) of a text such as N=1e9,D=2e10."""
    try:
        pairs = sorted((name.strip(), float(value)) for name, value in (part.split('=') for part in text.split(',')))
    except ValueError:
        pairs = []
    if [name for name, _ in pairs] != ['D', 'N'] or not all(value >= 1 for _, value in pairs) \
            or not laws.FLOPS * pairs[0][1] * pairs[1][1] < math.inf:
        raise config.Error(f'--at {text} is no size and length; write it as N=1e9,D=2e10.')
    (_, d), (_, n) = pairs
    return text, n, d


def overridden(text, runs):
    """Returns (text, N, D) of the run of most FLOPs of some Points with the overrides of a text."""
    try:
        changes = dict(word.partition('=')[::2] for word in shlex.split(text))
    except ValueError:  # of a quote that is not closed
        changes = {}
    if not changes or not all(changes.values()):
        raise config.Error(f"--predict {text!r} is no list of overrides; write it as 'model.width=512 steps=2000'.")
    largest = runs.trials[int(np.argmax(runs.n * runs.d))]
    settings = config.override(config.build(largest.about['config'], largest.code),
                               {key: Text(value) for key, value in changes.items()})
    tokens = settings.data.batch * settings.data.context * settings.steps
    return text, float(points.count(settings.model, runs.non_embedding)), float(tokens)


def advise(fit, flops):
    """Returns the Advice of a Fit for a budget of FLOPs."""
    if not laws.FLOPS <= flops < math.inf:
        raise config.Error(f'--budget={flops} is no number of FLOPs; try --budget=1e21.')
    (n, d), resampled = fit.law.optimum(flops), fit.resampled.optimum(flops)
    loss, interval = fit.predict(n, d)
    return Advice(flops, n, fit.interval(resampled[0]), d, fit.interval(resampled[1]), loss, interval,
                  flops / fit.reach)


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
    better = sum(why == points.BETTER for _, why in runs.left_out)
    if better:
        texts.append(f'{better} runs left out are {points.BETTER}: give those settings as many seeds.')
    texts += _doubts(findings) + _outside(findings)
    if fit.axis != 'point':
        texts.append(f'Runs of one {fit.axis} deviate from the law together; the intervals allow for it.')
    if runs.flops:
        texts.append('FLOPs are 6 N D; counted, these runs take {:.1f} to {:.1f} per parameter and token.'
                     .format(*runs.flops))
    return texts


def _doubts(findings):
    """Returns what is known of outliers, and of the error of the law beyond the runs, [text]."""
    runs, fit, texts = findings.points, findings.fit, []
    times = max([row.times for row in findings.predictions + findings.advices], default=1)
    if times > WARNED:
        tested = max((test.times.max() for test in findings.backtests), default=1)
        why = f'backtested up to {tested:.3g} times' if tested > 1 else 'assumed: these runs are too few to backtest'
        texts.append(f'{times:.3g} times the FLOPs of the largest run: there the law itself errs by '
                     f'{fit.drift * np.log(times):.1%} (standard deviation; {why}).')
    if fit.outliers.any():
        off = np.log(runs.loss / fit.law.loss(runs.n, runs.d))[fit.outliers]
        names = [f'{trial.name} ({math.expm1(error):+.0%})' for trial, error
                 in zip(np.array(runs.trials, object)[fit.outliers], off, strict=True)]
        law = laws.fit(*runs.only(~fit.outliers), resamples=1).law
        kept = backtests.widened(fit._replace(drift=laws.DRIFT), backtests.backtest(*runs.only(~fit.outliers)))
        drift = f', and the law errs by {kept.drift * np.log(10):.1%} at 10 times the FLOPs'
        texts.append(f'Outliers, too far from the law to be of it: {", ".join(names)}. Without them '
                     + ', '.join(f'{name} is {short(getattr(law, name))}' for name in law._fields)
                     + (drift if kept.drift != fit.drift else '') + '. They are no part of the noise.')
    return texts


def _outside(findings):
    """Returns what no run and no backtest is near, [text]: predictions of far fewer or more N or D, ends of budgets."""
    runs, texts = findings.points, []
    for letter, of_runs in (('N', runs.n), ('D', runs.d)):
        values = [getattr(row, letter.lower()) for row in findings.predictions + findings.advices]
        less, more = of_runs.min() / min(values, default=np.inf), max(values, default=0) / of_runs.max()
        if less > WARNED:
            texts.append(f'The smallest {letter} of the runs is {less:.3g} times what is asked: no run tells of the '
                         'law there, and its error is not in the intervals.')
        if more > WARNED and all(row.times <= WARNED for row in findings.predictions + findings.advices):
            texts.append(f'{more:.3g} times the largest {letter} of the runs: no run tells of the law there, and its '
                         'error is not in the intervals.')
    flat = min(findings.fit.law.alpha, findings.fit.law.beta) < 1.01 * laws.EXPONENTS[0]
    texts += [f'{advice.flops:.3g} FLOPs have no compute-optimal N and D by this law: losses do not fall with size or '
              'data as a law needs.' for advice in findings.advices if flat or min(advice.n, advice.d) < 1.01]
    return texts


def as_json(findings):
    """Returns Findings as JSON."""
    runs, fit = findings.points, findings.fit
    about = {'metric': runs.metric, 'parameters': 'non-embedding' if runs.non_embedding else 'all',
             'coefficients': {name: {'value': value, 'interval': interval}
                              for name, (value, interval) in coefficients(fit).items()},
             'noise': fit.noise, 'drift': fit.drift, 'agreeing': fit.axis,
             'flops_per_parameter_and_token': runs.flops,
             'backtests': [{'reach': test.reach, 'fitted': test.fitted, 'times': test.times.tolist(),
                            'errors': test.errors.tolist()} for test in findings.backtests],
             'predicted': [prediction._asdict() for prediction in findings.predictions],
             'budgets': [advice._asdict() for advice in findings.advices],
             'runs': [{'run': trial.name, 'n': float(n), 'd': float(d), 'loss': float(loss),
                       'outlier': bool(outlier)} for trial, n, d, loss, outlier
                      in zip(runs.trials, runs.n, runs.d, runs.loss, fit.outliers, strict=True)],
             'left': [list(row) for row in runs.left_out], 'notes': notes(findings)}
    return jsonlib.dumps(records.finite(about), indent=1)


def as_text(findings):
    """Returns Findings as text: the law, how well it predicts, predictions and budgets."""
    runs = findings.points
    parts = [opening(runs), columns(('', 'value', '95%'), law_rows(findings.fit)), accuracy(findings)]
    if findings.backtests:
        parts.append(columns(BACKTEST, [backtest_row(test) for test in findings.backtests]))
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
    """Returns the line that tells how well the law fits, and how it errs beyond the runs it is fitted to."""
    fit = findings.fit
    tested = 'backtests' if findings.backtests else 'assumed; too few runs to backtest'
    return (f'runs deviate {fit.noise:.2%} from the law (standard deviation); beyond the largest run the law errs by '
            f'{fit.drift * np.log(10):.1%} at 10 times its FLOPs ({tested})')


BACKTEST = ('fitted up to FLOPs', 'runs', 'predicted', 'at times the FLOPs', 'median error', 'largest')
PREDICTION = ('run', 'N', 'D', 'loss', '95% of such a run', 'times the largest run')
ADVICE = ('FLOPs', 'best N', '95%', 'best D', '95%', 'tokens per parameter', 'loss', '95% of such a run',
          'times the largest run')


def backtest_row(test):
    """Returns the row of a Backtest under BACKTEST."""
    largest = test.errors[np.argmax(np.abs(test.errors))]
    return (f'{test.reach:.3g}', str(test.fitted), str(len(test.errors)),
            f'{test.times.min():.3g} to {test.times.max():.3g}', f'{np.median(test.errors):+.1%}', f'{largest:+.1%}')


def prediction_row(prediction):
    """Returns the row of a Prediction under PREDICTION."""
    return (prediction.run, short(prediction.n), short(prediction.d), f'{prediction.loss:.4f}',
            span(prediction.interval), f'{prediction.times:.3g}')


def advice_row(advice):
    """Returns the row of an Advice under ADVICE."""
    return (f'{advice.flops:.3g}', short(advice.n), span(advice.n_interval, short), short(advice.d),
            span(advice.d_interval, short), f'{advice.d / advice.n:.3g}', f'{advice.loss:.4f}',
            span(advice.loss_interval), f'{advice.times:.3g}')


def span(interval, written='{:.4f}'.format):
    """Returns an interval as text."""
    return f'[{written(interval[0])}, {written(interval[1])}]'
