"""A study as text and JSON."""
import collections
import json as jsonlib
import math
import textwrap
from dataclasses import asdict

from lm import records
from lm.pages.text import columns
from lm.report import comparisons, scores, statistics, variants
from lm.report.readings import UNITS

HEAD = ('variant', 'verdict', 'difference', '95% t', 'p', 'gain', 'loss', 'seeds', '95% bootstrap', 'effect')
NATS, BITS = ('loss', 'valid/loss'), 'valid/bits_per_byte'
JSON = {'withheld': 'held', 'seeds_needed': 'more'}  # field of a Comparison -> its key in --json, which is public


def as_json(study, outcomes):
    """Returns a Study and the Outcomes of expectations about it as JSON; a number that is not finite is null."""
    about = {'question': study.question, 'metric': study.metric, 'baseline': study.variants[0].name,
             'noise': study.noise, 'margin': study.margin, 'left': [list(row) for row in study.left_out],
             'equal': {axis: _family(family) for axis, family in study.families.items()},
             'sources': {source: _family(family) for source, family in study.sources.items()},
             'expected': [outcome._asdict() for outcome in outcomes]}
    return jsonlib.dumps(records.finite(about), indent=1)


def _family(family):
    drawn = {name: {'rate': score.rate, 'losses': list(score.losses.values()),
                    'seeds': [list(seed) for seed in score.losses], 'add': score.add, 'notes': score.notes,
                    'outliers': list(score.outliers.values()), 'budget': family.budgets[name]}
             for name, score in family.scores.items()}
    compared = [{JSON.get(name, name): value for name, value in asdict(c).items()} for c in family.compared]
    return {'budget': family.budget, 'why': family.why, 'scores': drawn, 'compared': compared,
            'gains': {name: gain._asdict() for name, gain in family.gains.items()}, 'rises': family.rises,
            'cuts': dict(family.cuts), 'remarks': family.remarks}


def as_text(study, outcomes):
    """Returns a Study and the Outcomes of expectations about it as text: the question, the verdicts, then the rest."""
    parts = [textwrap.fill(study.question, 110)]
    for family in study.families.values():
        if judged(family):
            below = textwrap.fill(' '.join(footnotes(study, family)), 110)
            parts.append(f'{_block(family, heading(study, family))}\n{below}')
        elif len(study.variants) > 1:
            parts.append(f'at equal {UNITS[family.axis]}: {family.why}')
    parts += [_block(family, f'held-out loss of {source}, p over all {len(study.sources)} sources')
              for source, family in study.sources.items()]
    rates = rate_rows(study)
    if rates:
        parts.append(f'loss by {study.variants[0].rate_key}, mean ± standard deviation over seeds\n'
                     f'{columns(("variant", "rate", "seeds", "loss", ""), rates)}')
    if study.left_out:
        parts.append('left out\n' + columns(('', ''), study.left_out))
    parts.append('\n'.join(f'{"established" if o.established else "NOT established"}: {o.text}  ({o.why})'
                           for o in outcomes))
    return '\n\n'.join(part.rstrip() for part in parts if part)


def heading(study, family):
    """Returns the line above a Family's table: metric, budget, noise floor and margin."""
    if family.axis != 'tokens':
        return (f'{measured(study.metric)}, at {family.budget:.4g} {UNITS[family.axis]} each, the smallest budget '
                'of the runs of a pair')
    parts = [f'{measured(study.metric)}, at {family.budget:,.0f} tokens each']
    own = ', '.join(f'{key}={value}' for key, value in variants.own(study.variants).items())
    parts += [f'the baseline has {own}'] if own else []
    if math.isfinite(study.noise):
        parts.append(f'noise floor {study.noise:.2g}: the standard deviation of the baseline over its seeds')
    if family.compared:
        count = len(family.compared)
        parts += [f'p by Holm over {count} comparison{"s" * (count > 1)}',
                  f'"no difference" is within {comparisons.rounded_up(study.margin)}' if math.isfinite(study.margin)
                  else 'without seeds of the baseline no noise floor: give --margin to test "no difference"']
    return '; '.join(parts)


def measured(metric):
    """Returns the name of a metric with its unit."""
    return f'{metric}, nats per token' if metric in NATS else f'{metric}, bits per byte' if metric == BITS else metric


def notes(family):
    """Returns the notes below a Family's table, [text], each once with the names of all variants that it is about."""
    about = {}
    for name, own in [*((name, score.notes) for name, score in family.scores.items()),
                      *((c.name, c.notes) for c in family.compared),
                      *((name, (text,)) for name, text in (*family.cuts.items(), *family.remarks))]:
        for note in own:
            about.setdefault(note, {})[name] = None
    return [*(f'{", ".join(names)}: {note}' for note, names in about.items()), *([family.why] if family.why else [])]


def footnotes(study, family):
    """Returns the meaning of the columns and marks of a Family's table, and the caveats of its budget, [text]."""
    if not family.compared:
        return []
    texts = _legend(study, family) if family.axis == 'tokens' else []
    texts += _gain_note(study, family)
    if family.axis != 'tokens':
        texts.append('A run that goes on beyond the budget of its pair is read before its learning rate has decayed.')
    if family.axis == 'seconds':
        texts.append("Seconds are by each run's median speed on its own machine.")
    return texts


def _gain_note(study, family):
    """Returns [text] on how the gain is measured, or which runs would measure it."""
    if family.gains:
        bend = ' Two lengths do not show how it falls between them: a third would.' * (len(study.table.lengths) == 1)
        return [f'gain: {UNITS[family.axis]} that the baseline needs to end at the same loss, relative to those of the '
                f'variant, and its 95% interval; from final losses of the baseline at {len(study.table.lengths) + 1} '
                f'lengths.{bend}']
    if family.axis != 'tokens':
        return []
    if family.rises:
        return ["gain: none. The baseline's final losses rise with its length, so that no longer training reaches a "
                'lower loss.']
    if study.table.lengths:
        return ['gain: not measured, because runs or rates are missing at the lengths of the baseline (see above).']
    steps = study.variants[0].settings['steps']
    return ['gain: only its direction, by the verdict. Within a run the learning rate has not decayed, so that only '
            'final losses tell how much longer the baseline would take: run it with '
            f'steps={max(1, steps // 2)} and with steps={2 * steps} too.']


def _legend(study, family):
    """Returns the footnotes that hold for all Families and stand below the first, at equal tokens, [text]."""
    texts = ['A difference below 0 is better than the baseline. Each interval stands alone; p is corrected for all '
             "comparisons of its table. effect: the mean of the paired differences in their standard deviations (d_z); "
             "Hedges' g where seeds do not match."]
    corrections = max((max(c.corrections) for c in family.compared), default=0.0)
    if corrections:
        texts.append('The best of several rates looks better than it is: p and the intervals allow for that, by '
                     f'{corrections:.2g} at most.')
    if any(c.seeds_needed for c in family.compared):
        texts.append('"N more seeds" have a power of 0.8 if the true difference is the measured one. Testing again '
                     'after adding them calls 9 of 100 equal variants different, not 5; new ones alone do not.')
    if study.metric == BITS:
        texts += _bytes_per_token(study)
    if study.untuned:
        texts.append(f'Every variant ran at one {study.untuned}; some may do better at another: sweep it.')
    return texts


def _bytes_per_token(study):
    """Returns [text] of the bytes per token of each variant, [] where they are all alike or unknown."""
    sizes = {variant.name: trial.final['valid/loss'] / math.log(2) / trial.final[BITS]
             for variant in study.variants for trial in variant.finished[:1] if trial.final.get('valid/loss')}
    if not sizes or max(sizes.values()) < 1.01 * min(sizes.values()):
        return []
    listed = ', '.join(f'{size:.2f} in {name}' for name, size in sizes.items())
    return [f'Bytes per token: {listed}; at equal tokens the variants have not seen the same amount of text.']


def _block(family, above):
    return '\n'.join([above, columns(HEAD, verdict_rows(family)), *notes(family)])


def judged(family):
    """Returns whether a Family is shown as a table: equal tokens always, others if they compare anything."""
    return family.axis == 'tokens' or bool(family.compared)


def verdict_rows(family):
    """Returns the rows of a Family under HEAD: the baseline, then each variant; '' for what is unknown."""
    base, *others = family.scores
    compared = {c.name: c for c in family.compared}
    rows = [_row(base, '', family.scores[base], [''] * 6)]
    for name in others:
        verdict = 'another length' if name in family.lengths else comparisons.UNDECIDED
        numbers = [''] * 6
        if name in compared:
            verdict, numbers = _verdict(compared[name]), _numbers(compared[name], _times(family, compared[name]))
        rows.append(_row(name, verdict, family.scores[name], numbers))
    return rows


def _times(family, c):
    """Returns the gain of a Comparison as text; from one length of the baseline the direction, '' if undecided."""
    if c.name not in family.gains:
        whole = family.axis == 'tokens' and c.name not in family.cuts and not family.gains and not family.rises
        return {comparisons.BETTER: '>1x', comparisons.WORSE: '<1x'}.get(c.verdict, '') if whole else ''
    times, bound, (low, high) = family.gains[c.name]
    return f'{bound}{times:.2f}x [{f"{low:.2f}" if low else "-"}, {f"{high:.2f}" if math.isfinite(high) else "-"}]'


def _row(name, verdict, score, numbers):
    seeds, loss = losses(score)
    return (name, verdict, *numbers[:4], loss, seeds, *numbers[4:])


def losses(score):
    """Returns (number of seeds, mean ± standard deviation) of a Score as text."""
    if not score.losses:
        return '0', ''
    spread = f'± {_decimals(score.spread)}' if len(score.losses) > 1 else '(one)'
    return str(len(score.losses)), f'{_decimals(score.mean)} {spread}'


def _decimals(value, sign=''):
    """Returns a loss or a difference of losses as text of bounded width, with four decimals where they fit."""
    return f'{value:{sign}.4f}' if abs(value) < 1e5 else f'{value:{sign}.4g}'


def _verdict(c):
    if c.seeds_needed is None:
        return f'{c.verdict}: see below' if c.withheld else c.verdict
    count = c.seeds_needed if c.seeds_needed < statistics.MOST else 'over 1,000'
    return f'{c.verdict}, {count} more seed{"s" * (c.seeds_needed > 1)}'


def _numbers(c, times):
    return (_decimals(c.difference, '+'), _range(c.interval), f'{c.p:.3g}', times,
            _range(c.bootstrap), f'{c.effect:+.2f}' if math.isfinite(c.effect) else '-')


def _range(bounds):
    return f'[{_decimals(bounds[0], "+")}, {_decimals(bounds[1], "+")}]' if math.isfinite(bounds[0]) else '-'


def rate_rows(study):
    """Returns rows (variant, rate, seeds, loss, mark) of every learning rate tried, [] if none was swept."""
    rows, value = [], study.values()
    for variant in study.variants:
        score = study.families['tokens'].scores[variant.name]
        for rate, trials in variant.rates.items() if variant.rate_key else ():
            there = scores.Score({t.seed: value(t) for t in trials if t.state == 'finished'})
            missing = collections.Counter(t.state for t in trials if t.state != 'finished')
            marks = ['best'] * (rate == score.rate and bool(there.losses))
            marks += [f'{count} {state}' for state, count in missing.items()]
            rows.append((variant.name, '' if rate is None else f'{rate:.4g}', *losses(there), ', '.join(marks)))
    return rows
