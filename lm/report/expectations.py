"""Expectations about a study, tested one-sided: 'b < a by 0.01' or 'b = a within 0.02'."""
import re
from typing import NamedTuple

import numpy as np

from lm.config import Error
from lm.report import comparisons, statistics, variants

FORM = re.compile(r'\s*(?P<left>.+?)\s+(?P<sign>[<>=])\s+(?P<right>.+?)'
                  r'(?:\s+(?P<how>by|within)\s+(?P<size>[\d.eE+-]+))?\s*')


class Outcome(NamedTuple):
    """An expectation, whether it was established, and the numbers in one line."""

    text: str
    established: bool
    why: str


def check(texts, study):
    """Returns the [Outcome] of expectations about a Study, by one-sided tests, Holm-adjusted over all of them.

    Losses are compared at equal tokens and each variant's best rate. Raises config.Error for a text without meaning.
    """
    tests = [_test(text, study) for text in texts]
    adjusted = statistics.holm(np.array([p for _, p, _ in tests], float)).tolist()
    return [_outcome(text, c, p, notes) for text, (c, _, notes), p in zip(texts, tests, adjusted, strict=True)]


def _outcome(text, c, p, notes):
    if c is None:
        return Outcome(text, False, '; '.join(['nothing can be concluded from one seed or none', *notes]))
    low, high = c.interval
    numbers = f'difference {c.difference:+.4g} [{low:+.4g}, {high:+.4g}], {c.seeds} seeds, one-sided p {p:.2g}'
    return Outcome(text, p < comparisons.ALPHA and not c.withheld, '; '.join([numbers, *notes]))


def _test(text, study):
    """Returns (Comparison or None, unadjusted p, notes) of an expectation."""
    form = FORM.fullmatch(text)
    size = _size(form)
    if size is None:
        raise Error(f"--expect {text!r} cannot be read; write 'b < a by 0.01', 'b < a' or 'b = a within 0.02'.")
    left, right = (variants.find(study.variants, form[side]).name for side in ('left', 'right'))
    if form['sign'] == '>':
        left, right = right, left
    scores = study.families['tokens'].scores
    c = comparisons.compare(left, scores[left], scores[right])
    notes = [f'{name}: {note}' for name in (left, right) for note in scores[name].notes]
    if c is None:
        return None, 1.0, notes
    numbers = c.difference, c.error, c.freedom
    p = (statistics.p_equivalent(*numbers, size, c.penalties) if form['sign'] == '=' else
         c.penalties[0] * statistics.p_below(*numbers, -size))
    return c, float(p), [*notes, *c.notes]


def _size(form):
    """Returns the number in an expectation, 0 where it may lack one, None where the expectation cannot be parsed."""
    if form is None or (form['how'] == 'within') != (form['sign'] == '='):
        return None
    try:
        return float(form['size'] or 0)
    except ValueError:
        return None
