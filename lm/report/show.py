"""`lm report`: what runs show, as text, JSON or a page."""
import json as jsonlib
import math
import textwrap
from dataclasses import asdict

from lm import records
from lm.pages.text import columns
from lm.report import comparisons, statistics, variants

HEAD = ('variant', 'verdict', 'difference', '95% t', 'p', 'gain', 'loss', 'seeds', '95% bootstrap', 'effect')
UNITS = {'tokens': 'tokens', 'flops': 'FLOPs', 'seconds': 'seconds of training'}
NATS, BITS = ('loss', 'valid/loss'), 'valid/bits_per_byte'


def as_json(found, outcomes):
    """Returns a Study and the Outcomes of what was expected of it as JSON; a number that is not finite is null."""
    about = {'question': found.question, 'metric': found.metric, 'baseline': found.variants[0].name,
             'noise': found.noise, 'margin': found.margin, 'left': [list(row) for row in found.left],
             'equal': {axis: _family(family) for axis, family in found.families.items()},
             'sources': {source: _family(family) for source, family in found.sources.items()},
             'expected': [outcome._asdict() for outcome in outcomes]}
    return jsonlib.dumps(records.finite(about), indent=1)


def _family(family):
    scores = {name: {'rate': score.rate, 'losses': list(score.losses.values()),
                     'seeds': [list(seed) for seed in score.losses], 'add': score.add, 'notes': score.notes}
              for name, score in family.scores.items()}
    return {'budget': family.budget, 'why': family.why, 'scores': scores,
            'compared': [asdict(c) for c in family.compared],
            'gains': {name: gain._asdict() for name, gain in family.gains.items()}}


def as_text(found, outcomes):
    """Returns a Study as text: the question, the verdicts, then whatever else was to be said."""
    parts = [textwrap.fill(found.question, 110)]
    for family in found.families.values():
        if judged(family):
            below = textwrap.fill(' '.join(footnotes(found, family)), 110)
            parts.append(f'{_block(family, heading(found, family))}\n{below}')
        elif len(found.variants) > 1:
            parts.append(f'at equal {UNITS[family.axis]}: {family.why}')
    parts += [_block(family, f'held-out loss of {source}, p over all {len(found.sources)} sources')
              for source, family in found.sources.items()]
    rates = rate_rows(found)
    if rates:
        parts.append(f'loss by {found.variants[0].rate_key}, mean ± deviation over seeds\n'
                     f'{columns(("variant", "rate", "seeds", "loss", ""), rates)}')
    if found.left:
        parts.append('left out\n' + columns(('', ''), found.left))
    parts.append('\n'.join(f'{"established" if o.established else "NOT established"}: {o.text}  ({o.why})'
                           for o in outcomes))
    return '\n\n'.join(part.rstrip() for part in parts if part)


def heading(found, family):
    """Returns what a Family's table shows, with the noise floor and the margin, in a line."""
    if family.axis != 'tokens':
        return (f'{measured(found.metric)}, at {family.budget:.4g} {UNITS[family.axis]} each, the least that a run was '
                'given')
    said = [f'{measured(found.metric)}, at {family.budget:,.0f} tokens each']
    own = ', '.join(f'{key}={value}' for key, value in variants.own(found.variants).items())
    said += [f'the baseline has {own}'] if own else []
    if math.isfinite(found.noise):
        said.append(f'noise floor {found.noise:.2g}: the deviation of the baseline over its seeds')
    if family.compared:
        count = len(family.compared)
        said += [f'p by Holm over {count} comparison{"s" * (count > 1)}',
                 f'"no difference" is within {found.margin:.2g}']
    return '; '.join(said)


def measured(metric):
    """Returns the name of a metric with its unit."""
    return f'{metric}, nats a token' if metric in NATS else f'{metric}, bits a byte' if metric == BITS else metric


def notes(family):
    """Returns what is to be said below a Family's table, [text], of each note once whom it is about."""
    about = {}
    for name, own in [*((name, score.notes) for name, score in family.scores.items()),
                      *((c.name, c.notes) for c in family.compared)]:
        for note in own:
            about.setdefault(note, []).append(name)
    said = [f'{", ".join(names)}: {note}' for note, names in about.items()]
    return [*said, *([family.why] if family.why else [])]


def footnotes(found, family):
    """Returns what the columns and marks of a Family's table mean, and what its budget leaves out, [text]."""
    if not family.compared:
        return []
    said = _legend(found, family) if family.axis == 'tokens' else []
    if any(gain.extended for gain in family.gains.values()):
        said.append("* past the end of the baseline's curve, by the power law that its second half follows.")
    if family.gains:
        said.append(f'gain: how many times as many {UNITS[family.axis]} the baseline needs to reach the same loss.')
    if any(trial.settings['steps'] * trial.tokens_per_step > 1.001 * found.families['tokens'].budget
           for variant in found.variants for trial in variant.finished) or family.axis != 'tokens':
        said.append('A run that is cut short here had not yet lowered its rate as its schedule would.')
    if family.axis == 'seconds':
        said.append('Seconds are by the median speed of each run, on its machine as it was.')
    return said


def _legend(found, family):
    """Returns the footnotes that are said once, at equal tokens, and hold for all Families, [text]."""
    said = ['A difference below 0 is better than the baseline. Each interval stands alone; p is corrected for all '
            "comparisons of its table. effect: the difference in deviations over seeds (Hedges' g)."]
    if any(c.more for c in family.compared):
        said.append('So many more seeds settle it in 8 of 10 cases if the difference is what it seems. Looking again '
                    'after adding them calls 9 of 100 equal variants different, not 5; seeds of a new sweep do not.')
    if found.metric == BITS:
        said += _text_seen(found)
    if found.untuned:
        said.append(f'Every variant ran at one {found.untuned}; some may do better at another: sweep it.')
    return said


def _text_seen(found):
    """Returns [how many bytes a token holds for each variant], [] where all hold as many or it is not known."""
    known = {variant.name: trial.final['valid/loss'] / math.log(2) / trial.final[BITS]
             for variant in found.variants for trial in variant.finished[:1] if trial.final.get('valid/loss')}
    held = [f'{size:.2f} in {name}' for name, size in known.items()]
    if not known or max(known.values()) < 1.01 * min(known.values()):
        return []
    return [f'Bytes a token: {", ".join(held)}; at equal tokens they have not seen as much text.']


def _block(family, above):
    return '\n'.join([above, columns(HEAD, verdict_rows(family)), *notes(family)])


def judged(family):
    """Returns whether a Family has a table to show: that of equal tokens always does, others where they compare."""
    return family.axis == 'tokens' or bool(family.compared)


def verdict_rows(family):
    """Returns the rows under HEAD of a Family: the baseline, then each variant, with '' where nothing is known."""
    base, *others = family.scores
    compared = {c.name: c for c in family.compared}
    rows = [_row(base, '', family.scores[base], [''] * 6)]
    for name in others:
        verdict, numbers = comparisons.UNDECIDED, [''] * 6
        if name in compared:
            verdict, numbers = _verdict(compared[name]), _numbers(compared[name], family.gains.get(name))
        rows.append(_row(name, verdict, family.scores[name], numbers))
    return rows


def _row(name, verdict, score, numbers):
    seeds, loss = losses(score)
    return (name, verdict, *numbers[:4], loss, seeds, *numbers[4:])


def losses(score):
    """Returns (how many seeds, their mean and deviation) of a Score as text; one seed is called one."""
    known = list(score.losses.values())
    if not known:
        return '0', ''
    spread = f'± {comparisons.noise(score):.4f}' if len(known) > 1 else '(one)'
    return str(len(known)), f'{score.mean:.4f} {spread}'


def _verdict(c):
    if c.more is None:
        return f'{c.verdict}: see below' if c.held else c.verdict
    return f'{c.verdict}, {c.more if c.more < statistics.MOST else "over 1,000"} more seed{"s" * (c.more > 1)}'


def _numbers(c, gain):
    return (f'{c.difference:+.4f}', _range(c.interval), f'{c.p:.2g}',
            '' if gain is None else f'{gain.bound}{gain.times:.2f}x{"*" if gain.extended else ""}',
            _range(c.bootstrap), f'{c.effect:+.2f}' if math.isfinite(c.effect) else '-')


def _range(bounds):
    return f'[{bounds[0]:+.4f}, {bounds[1]:+.4f}]' if math.isfinite(bounds[0]) else '-'


def rate_rows(found):
    """Returns rows (variant, rate, seeds, loss, mark) of every rate that was tried, [] where none was swept."""
    rows, value = [], found.table.values('tokens')
    for variant in found.variants:
        score = found.families['tokens'].scores[variant.name]
        for rate, trials in variant.rates.items() if variant.rate_key else ():
            known = comparisons.Score({t.seed: value(t) for t in trials if t.state == 'finished'})
            failed = sum(t.state == 'failed' for t in trials)
            marks = ['best'] * (rate == score.rate and bool(known.losses)) + [f'{failed} failed'] * bool(failed)
            rows.append((variant.name, f'{rate:.4g}', *losses(known), ', '.join(marks)))
    return rows
