"""`lm report`: what runs show, as text, JSON or a page."""
import json as jsonlib
import math
import textwrap
from dataclasses import asdict
from pathlib import Path

from lm.report import comparisons, expectations, study

HEAD = ('variant', 'seeds', 'loss', 'difference', '95% t', '95% bootstrap', 'p', 'effect', 'gain', 'verdict')
UNITS = {'tokens': 'tokens', 'flops': 'FLOPs', 'seconds': 'seconds of training'}


def main(*directories: str, html: str = '', json: bool = False, expect: tuple = (), baseline: str = '',
         margin: float | None = None, metric: str = '', rate: str = 'optimizer.peak'):
    """Says which differences between runs are real: paired by seed, with intervals, corrected, with verdicts.

    Args:
        directories: directories of sweeps or of runs; what remains of a run's settings without its seeds is a variant
        html: file to write the page to, which needs no network
        json: print everything as JSON
        expect: 'b < a by 0.01', 'b < a' or 'b = a within 0.02'; exits with 1 where that is not established
        baseline: the variant or run that others are compared with, by default the sweep's own settings, else the first
        margin: what counts as no difference, by default the noise floor
        metric: what to compare, by default valid/loss, or valid/bits_per_byte where tokenizers differ
        rate: the setting at whose best value each variant is compared
    """
    found = study.read(directories, study.Options(baseline, margin, metric, rate))
    outcomes = expectations.check(expect, found)
    if html:
        from lm.report import page
        Path(html).write_text(page.written(found, directories), encoding='utf-8')
    print(as_json(found, outcomes) if json else as_text(found, outcomes))
    return 0 if all(outcome.established for outcome in outcomes) else 1


def as_json(found, outcomes):
    """Returns a Study and the Outcomes of what was expected of it as JSON; a number that is not finite is null."""
    about = {'question': found.question, 'metric': found.metric, 'baseline': found.variants[0].name,
             'noise': found.noise, 'margin': found.margin, 'left': [list(row) for row in found.left],
             'equal': {axis: _family(family) for axis, family in found.families.items()},
             'sources': {source: _family(family) for source, family in found.sources.items()},
             'expected': [outcome._asdict() for outcome in outcomes]}
    return jsonlib.dumps(finite(about), indent=1)


def _family(family):
    scores = {name: {'rate': score.rate, 'losses': list(score.losses.values()),
                     'seeds': [list(seed) for seed in score.losses], 'add': score.add, 'notes': score.notes}
              for name, score in family.scores.items()}
    return {'budget': family.budget, 'why': family.why, 'scores': scores,
            'compared': [asdict(c) for c in family.compared],
            'gains': {name: gain and gain._asdict() for name, gain in family.gains.items()}}


def finite(value):
    """Returns JSON-able data with None for every number that is not finite, which JSON has no word for."""
    if isinstance(value, dict):
        return {name: finite(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def as_text(found, outcomes):
    """Returns a Study as text: the question, the verdicts, then whatever else was to be said."""
    parts = [textwrap.fill(found.question, 110)] if found.question else []
    for family in found.families.values():
        parts.append(_block(found, family, _heading(found, family)))
    for source, family in found.sources.items():
        parts.append(_block(found, family, f'held-out loss of {source}, p over all {len(found.sources)} sources'))
    rates = rate_rows(found)
    if rates:
        parts.append(f'loss by {found.variants[0].rate_key}, mean ± deviation over seeds\n'
                     f'{columns(("variant", "rate", "seeds", "loss", ""), rates)}')
    if found.left:
        parts.append('left out\n' + columns(('', ''), found.left))
    if outcomes:
        parts.append('\n'.join(f'{"established" if o.established else "NOT established"}: {o.text}  ({o.why})'
                               for o in outcomes))
    return '\n\n'.join(parts)


def _heading(found, family):
    if family.axis == 'tokens':
        noise = f'noise floor {found.noise:.2g} over its seeds' if math.isfinite(found.noise) else 'no noise floor'
        margin = f'"no difference" is within {found.margin:.2g}' if math.isfinite(found.margin) else ''
        return (f'{found.metric} at {family.budget:,.0f} tokens; {noise}; p by Holm over {len(family.compared)} '
                f'comparisons; {margin}').rstrip('; ')
    return f'{found.metric} at {family.budget:.4g} {UNITS[family.axis]} each, the least that a run was given'


def _block(found, family, heading):
    if family.axis != 'tokens' and not family.compared:
        return f'at equal {family.axis}: {family.why}' if family.why else ''
    notes = [f'{c.name}: {note}' for c in family.compared for note in c.notes] + ([family.why] if family.why else [])
    return '\n'.join([heading, columns(HEAD, verdict_rows(found, family)), *dict.fromkeys(notes)])


def verdict_rows(found, family):
    """Returns the rows under HEAD of a Family: the baseline, then each variant, with '' where nothing is known."""
    base, *others = family.scores
    compared = {c.name: c for c in family.compared}
    rows = [(base, *_losses(family.scores[base]), *('',) * 6, '')]
    for name in others:
        head = (name, *_losses(family.scores[name]))
        rows.append((*head, *_numbers(compared[name], family.gains.get(name, None))) if name in compared
                    else (*head, *('',) * 6, comparisons.UNDECIDED))
    return rows


def _losses(score):
    losses = list(score.losses.values())
    if not losses:
        return '0', ''
    mean = sum(losses) / len(losses)
    return str(len(losses)), f'{mean:.4f} ± {comparisons.noise(score):.4f}' if len(losses) > 1 else f'{mean:.4f} (one)'


def _numbers(c, gain):
    verdict = c.verdict
    if c.more is not None:
        verdict += f', {c.more} more seeds' if c.more < comparisons.statistics.MOST else ', over 1,000 more seeds'
    return (f'{c.difference:+.4f}', _range(c.interval), _range(c.bootstrap), f'{c.p:.2g}', f'{c.effect:+.2f}',
            '' if gain is None else f'{gain.bound}{gain.times:.2f}x{"*" if gain.extended else ""}', verdict)


def _range(bounds):
    return f'[{bounds[0]:+.4f}, {bounds[1]:+.4f}]' if math.isfinite(bounds[0]) else '-'


def rate_rows(found):
    """Returns rows (variant, rate, seeds, loss, mark) of every rate that was tried, [] where none was swept."""
    rows = []
    for variant in found.variants:
        score, value = found.families['tokens'].scores[variant.name], found.table.values('tokens')
        for rate, trials in variant.rates.items() if variant.rate_key else ():
            losses = comparisons.Score({t.seed: value(t) for t in trials if t.state == 'finished'})
            failed = sum(t.state == 'failed' for t in trials)
            mark = 'best' if rate == score.rate else ''
            rows.append((variant.name, f'{rate:.4g}', *_losses(losses), mark + (f'{failed} failed' if failed else '')))
    return rows


def columns(head, rows):
    """Returns a table as text, its columns aligned; nothing is cut."""
    rows = [*([head] if any(head) else []), *rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return '\n'.join('  '.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
                     for row in rows)
