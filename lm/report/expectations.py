"""Expectations about a study, tested one-sided: 'b < a by 0.01' or 'b = a within 0.02'."""
import math
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
    left, right = (variants.find(study.variants, form[side]) for side in ('left', 'right'))
    if left is right:
        raise Error(f'--expect {text!r} compares {left.name} with itself; name two variants.')
    if form['sign'] == '>':
        left, right = right, left
    pair, c = study.table.compare(left, right)
    notes = [f'{variant.name}: {note}' for variant, score in ((left, pair.score), (right, pair.base_score))
             for note in score.notes]
    if c is None:
        return None, 1.0, notes
    p = (statistics.p_equivalent(c.difference, c.error, c.freedom, size, c.corrections) if form['sign'] == '=' else
         statistics.p_below(c.difference + c.corrections[0], c.error, c.freedom, -size))
    return c, float(p), [*notes, *(f'{pair.ours.name}: {note}' for note in c.notes)]


def _size(form):
    """Returns the number in an expectation, 0 where it may lack one, None where the expectation cannot be parsed.

    Raises config.Error for a number that is no size of a difference: negative, infinite, or a margin of 0.
    """
    if form is None or (form['how'] == 'within') != (form['sign'] == '='):
        return None
    try:
        size = float(form['size'] or 0)
    except ValueError:
        return None
    if not 0 <= size < math.inf or (form['how'] == 'within' and not size):
        raise Error(f"--expect {form[0]!r}: {form['size']} is no size of a difference; try {form['how']} 0.01.")
    return size
