"""A study as one HTML file that holds everything it needs."""
import html

from lm.pages import document, figures, tags
from lm.report import comparisons, costs, parallel_coordinates, plots, provenance, show, variants

CLASSES = {comparisons.BETTER: 'better', comparisons.WORSE: 'worse'}
KINDS = tuple((lambda text: CLASSES.get(text, 'same')) if name == 'verdict' else '' for name in show.HEAD)


def written(found, directories):
    """Returns the page of a Study of runs in these directories, as the text of one HTML file."""
    flops = found.table.flops or costs.per_token(found.variants[0].finished) or {}
    drawn = {'losses': plots.losses(found, found.metric), 'training': plots.losses(found, 'loss')}
    rates = plots.sensitivity(found)
    drawn |= {'rates': {'rate': rates}} if rates else {}
    body = '\n'.join([_opening(found), _verdicts(found), _plots(drawn, found), _sources(found),
                      parallel_coordinates.section(found), _differences(found), provenance.section(found, flops),
                      _samples(found), _left(found)])
    return document.render(found.question or 'Report', body, drawn)


def _opening(found):
    trials = [trial for variant in found.variants for trial in variant.trials]
    return (f'<h1>{html.escape(found.question or "What these runs show")}</h1>\n'
            + tags.paragraph(f'Variants: {len(found.variants)}. Runs: {len(trials)}, left out {len(found.left)}. '
                        f'Measured: {show.measured(found.metric)}; lower is better.'))


def _verdicts(found):
    if len(found.variants) == 1:
        score = found.families['tokens'].scores[found.variants[0].name]
        seeds, loss = show.losses(score)
        said = f'One variant and nothing to compare it with. {found.metric}: {loss}, {seeds} seed(s).'
        return tags.section('Result', tags.paragraph(said, ''), tags.paragraph(found.families['tokens'].why))
    return '\n'.join(tags.section(f'At equal {show.UNITS[axis]}', _family(found, family))
                     for axis, family in found.families.items())


def _family(found, family):
    if not show.judged(family):
        return tags.paragraph(family.why[:1].upper() + family.why[1:] + '.')
    notes = ''.join(f'<li>{html.escape(note)}</li>' for note in show.notes(family) + show.footnotes(found, family))
    return tags.paragraph(show.heading(found, family)) + _table(family) + f'<ul class="soft">{notes}</ul>'


def _table(family):
    return tags.table(show.HEAD, show.verdict_rows(family), KINDS)


def _plots(drawn, found):
    hidden = len(found.variants) - plots.SHOWN
    few = f' Of {len(found.variants)} variants, the baseline and the {plots.SHOWN - 1} best.' if hidden > 0 else ''
    text = {'losses': ('Held-out loss',
                       'Lines are means over seeds at the best rate of each variant; bands span all seeds.'),
            'training': ('Training loss', 'Smoothing averages over steps; bands span all seeds.'),
            'rates': ('Sensitivity to the rate', 'Bands are one standard deviation over seeds to each side.')}
    return '\n'.join(
        tags.section(text[name][0], figures.figure(name, figures.by_axis(choices), text[name][1] + few,
                                                   smoothing=name == 'training'))
        for name, choices in drawn.items() if choices)


def _sources(found):
    said = f'p is adjusted over the comparisons of all {len(found.sources)} sources.'
    return '\n'.join(tags.section(f'Held-out loss of {source}', _table(family), tags.paragraph(said))
                     for source, family in found.sources.items())


def _differences(found):
    base, *others = found.variants
    rows = [('' if i else other.name, key, before, after) for other in others
            for i, (key, (before, after)) in enumerate(sorted(variants.changed(base.settings, other.settings).items()))]
    settings = tags.table(('setting', 'value'), sorted(base.settings.items()), ('any', 'any'))
    every = (f'<details><summary>All settings of {html.escape(base.name if others else "this run")}</summary>{settings}'
             '</details>')
    changes = tags.table(('variant', 'setting', 'baseline', 'here'), rows, ('any',) * 4) if rows else ''
    return tags.section('Settings', changes, every)


def _samples(found):
    texts = [(variant.name, path) for variant in plots.shown(found) for trial in variant.finished[:1]
             for path in [trial.directory / 'sample.txt'] if path.exists()]
    shown = [(html.escape(name), html.escape(path.read_text(encoding='utf-8')[:2000])) for name, path in texts]
    return tags.section('Samples', *(f'<p>{name}</p><pre>{text}</pre>' for name, text in shown))


def _left(found):
    return tags.section('Left out', tags.table(('run', 'why'), found.left, ('', 'any'))) if found.left else ''
