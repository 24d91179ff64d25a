"""`lm scaling`: the law of a sweep of sizes, as text, JSON or a page."""
import json as jsonlib
import math
import shlex
from typing import NamedTuple

import numpy as np

from lm import config, records
from lm.config.values import Text
from lm.pages.text import columns, short
from lm.scaling import laws, points


class Guess(NamedTuple):
    """What the law says of a run: its N, D and loss with the interval it should be in; `run` is how it was named."""

    run: str
    n: float
    d: float
    loss: float
    interval: tuple


class Advice(NamedTuple):
    """How a budget of FLOPs is spent best: N and D with their intervals, the loss that should be reached with it."""

    flops: float
    n: float
    n_interval: tuple
    d: float
    d_interval: tuple
    loss: float
    loss_interval: tuple
    times: float


class Findings(NamedTuple):
    """All that is said of some Points: their Fit, the runs asked for, budgets, and the most costly runs held out.

    held: (Guess of the runs of most FLOPs from all others, the mean loss that they reached), None where too few remain.
    """

    points: points.Points
    fit: laws.Fit
    guesses: list
    advices: list
    held: tuple | None


def asked_for(text):
    """Returns (text, N, D) of a text such as N=1e9,D=2e10."""
    try:
        given = {name.strip(): float(value) for name, value in (part.split('=') for part in text.split(','))}
    except ValueError:
        given = {}
    if given.keys() != {'N', 'D'} or not all(0 < value < math.inf for value in given.values()):
        raise config.Error(f'--at {text} is no size and length; write it as N=1e9,D=2e10.')
    return text, given['N'], given['D']


def described(text, found):
    """Returns (text, N, D) of the run of most FLOPs with the overrides of a text."""
    changes = dict(word.partition('=')[::2] for word in shlex.split(text))
    if not changes or not all(changes.values()):
        raise config.Error(f"--predict {text!r} is no list of overrides; write it as 'model.width=512 steps=2000'.")
    largest = found.trials[int(np.argmax(found.n * found.d))]
    settings = config.override(config.build(largest.about['config'], largest.directory / 'experiment.py'),
                               {key: Text(value) for key, value in changes.items()})
    tokens = settings.data.batch * settings.data.context * settings.steps
    return text, float(points.count(settings.model, found.inside)), float(tokens)


def advise(found, fit, flops):
    """Returns the Advice for a budget of FLOPs; `times` is how many times those of the largest run it is."""
    if not 0 < flops < math.inf:
        raise config.Error(f'--budget={flops} is no number of FLOPs; try --budget=1e21.')
    (n, d), many = fit.law.optimum(flops), fit.resampled.optimum(flops)
    loss, interval = fit.predict(n, d)
    return Advice(flops, n, fit.interval(many[0]), d, fit.interval(many[1]), loss, interval,
                  flops / float(np.max(laws.FLOPS * found.n * found.d)))


def hold_out(found):
    """Returns (Guess, loss) of the runs of most FLOPs by the law of all others; None where those are too few."""
    product = found.n * found.d
    kept = product < product.max()
    if kept.sum() < laws.LEAST or min(len(set(found.n[kept])), len(set(found.d[kept]))) < 3:
        return None
    n, d = found.n[~kept][0], found.d[~kept][0]
    guess = Guess(found.trials[int(np.argmax(product))].name, n, d, *laws.fit(*found.only(kept)).predict(n, d))
    return guess, float(found.loss[~kept].mean())


def coefficients(fit):
    """Returns {name: (value, (low, high))} of all coefficients and of the power with which the best N grows."""
    names = [*laws.Law._fields, 'share']
    return {name: (getattr(fit.law, name), fit.interval(getattr(fit.resampled, name))) for name in names}


def notes(findings):
    """Returns what the numbers are to be read with, [text]."""
    found, fit = findings.points, findings.fit
    said = [f'{name} is at the end of its range: the loss of these runs does not say how it falls with {letter}; '
            f'add runs of more different {letter}.'
            for name, letter in (('alpha', 'N'), ('beta', 'D'))
            if not 1.01 * laws.EXPONENTS[0] < getattr(fit.law, name) < 0.99 * laws.EXPONENTS[1]]
    far = [row for row in findings.guesses if row.n * row.d > 100 * (found.n * found.d).max()]
    if far or any(advice.times > 100 for advice in findings.advices):
        said.append('More than 100 times the FLOPs of the largest run: the interval takes the law to hold that far.')
    if found.flops:
        said.append('FLOPs are 6 N D; counted, these runs take {:.1f} to {:.1f} a parameter and token.'
                    .format(*found.flops))
    return said


def as_json(findings):
    """Returns Findings as JSON."""
    found, fit = findings.points, findings.fit
    about = {'metric': found.metric, 'parameters': 'non-embedding' if found.inside else 'all',
             'coefficients': {name: {'value': value, 'interval': interval}
                              for name, (value, interval) in coefficients(fit).items()},
             'noise': fit.noise, 'flops_per_parameter_and_token': found.flops,
             'held_out': findings.held and {**findings.held[0]._asdict(), 'reached': findings.held[1]},
             'predicted': [guess._asdict() for guess in findings.guesses],
             'budgets': [advice._asdict() for advice in findings.advices],
             'runs': [{'run': trial.name, 'n': float(n), 'd': float(d), 'loss': float(loss)} for trial, n, d, loss
                      in zip(found.trials, found.n, found.d, found.loss, strict=True)],
             'left': [list(row) for row in found.left], 'notes': notes(findings)}
    return jsonlib.dumps(records.finite(about), indent=1)


def as_text(findings):
    """Returns Findings as text: the law, how well it foretells, what was asked."""
    found = findings.points
    parts = [opening(found), columns(('', 'value', '95%'), law_rows(findings.fit)), foretold(findings)]
    if findings.guesses:
        parts.append(columns(GUESSED, [guess_row(guess) for guess in findings.guesses]))
    if findings.advices:
        parts.append(columns(ADVISED, [advice_row(advice) for advice in findings.advices]))
    parts.append('\n'.join(notes(findings)))
    if found.left:
        parts.append('left out\n' + columns(('', ''), found.left))
    return '\n\n'.join(part for part in parts if part)


def opening(found):
    """Returns in a line what was fitted to what."""
    kind = 'parameters between embedding and output' if found.inside else 'all parameters'
    return (f'{found.metric} = E + A / N^alpha + B / D^beta over {len(found.n)} finished runs; '
            f'N {kind}: {short(found.n.min())} to {short(found.n.max())} ({len(set(found.n))} sizes); '
            f'D tokens seen: {short(found.d.min())} to {short(found.d.max())} ({len(set(found.d))} lengths)')


def law_rows(fit):
    """Returns rows (name, value, interval) of the coefficients, and how the best N and D grow with a budget C."""
    rows = [(name, short(value), span(interval, short)) for name, (value, interval) in coefficients(fit).items()]
    *rows, (_, share, interval) = rows
    return [*rows, ('best N grows as C to the', share, interval)]


def foretold(findings):
    """Returns how far runs lie from the law, and what it says of the most costly ones without having seen them."""
    said = f'runs lie {findings.fit.noise:.2%} around the law (one deviation)'
    if not findings.held:
        return f'{said}; too few runs to hold the largest out'
    guess, reached = findings.held
    return (f'{said}; held out, {guess.run} of most FLOPs: predicted {guess.loss:.4f} {span(guess.interval)} from the '
            f'others, reached {reached:.4f}')


GUESSED = ('run', 'N', 'D', 'loss', '95% of such a run')
ADVISED = ('FLOPs', 'best N', '95%', 'best D', '95%', 'tokens a parameter', 'loss', '95% of such a run',
           'times the largest run')


def guess_row(guess):
    """Returns the row under GUESSED of a Guess."""
    return guess.run, short(guess.n), short(guess.d), f'{guess.loss:.4f}', span(guess.interval)


def advice_row(advice):
    """Returns the row under ADVISED of an Advice."""
    return (f'{advice.flops:.3g}', short(advice.n), span(advice.n_interval, short), short(advice.d),
            span(advice.d_interval, short), f'{advice.d / advice.n:.3g}', f'{advice.loss:.4f}',
            span(advice.loss_interval), f'{advice.times:.3g}')


def span(interval, written='{:.4f}'.format):
    """Returns an interval as text."""
    return f'[{written(interval[0])}, {written(interval[1])}]'
