"""What a report is expected to establish: 'b < a by 0.01', or 'b = a within 0.02'."""
import re
from typing import NamedTuple

import numpy as np

from lm.config import Error
from lm.report import comparisons, statistics, variants

FORM = re.compile(r'\s*(?P<left>.+?)\s+(?P<sign>[<>=])\s+(?P<right>.+?)'
                  r'(?:\s+(?P<how>by|within)\s+(?P<size>[\d.eE+-]+))?\s*')


class Outcome(NamedTuple):
    """Whether an expectation was established, and the arithmetic in a line."""

    text: str
    established: bool
    why: str


def check(texts, study):
    """Returns the [Outcome] of expectations about a Study, one-sided tests with p adjusted over all of them.

    Each is about losses at equal tokens, at each variant's best rate. Raises config.Error for one that cannot be read.
    """
    asked = [_parsed(text, study) for text in texts]
    adjusted = statistics.holm(np.array([p for _, p, _ in asked], float)).tolist()
    return [Outcome(text, p < comparisons.ALPHA and not found.held, _told(found, p, notes))
            if found else Outcome(text, False, '; '.join(['nothing can be concluded from one seed or none', *notes]))
            for text, (found, _, notes), p in zip(texts, asked, adjusted, strict=True)]


def _told(found, p, notes):
    low, high = found.interval
    said = f'difference {found.difference:+.4g} [{low:+.4g}, {high:+.4g}], {found.seeds} seeds, one-sided p {p:.2g}'
    return '; '.join([said, *notes])


def _parsed(text, study):
    """Returns (Comparison or None, p before it is adjusted, notes) of an expectation."""
    form = FORM.fullmatch(text)
    size = _size(form)
    if size is None:
        raise Error(f"--expect {text!r} cannot be read; write 'b < a by 0.01', 'b < a' or 'b = a within 0.02'.")
    left, right = (variants.find(study.variants, form[side]).name for side in ('left', 'right'))
    if form['sign'] == '>':
        left, right = right, left
    scores = study.families['tokens'].scores
    found = comparisons.compare(left, scores[left], scores[right])
    notes = [f'{name}: {note}' for name in (left, right) for note in scores[name].notes]
    if found is None:
        return None, 1.0, notes
    numbers = found.difference, found.error, found.freedom
    p = (statistics.p_equivalent(*numbers, size, found.penalties) if form['sign'] == '=' else
         found.penalties[0] * statistics.p_below(*numbers, -size))
    return found, float(p), [*notes, *found.notes]


def _size(form):
    """Returns the number an expectation names, 0 where it may lack one, None where it cannot be read."""
    if form is None or (form['how'] == 'within') != (form['sign'] == '='):
        return None
    try:
        return float(form['size'] or 0)
    except ValueError:
        return None
