"""A study as one HTML file that holds everything it needs."""
import functools
import html
import json
from importlib import resources
from string import Template

from lm.report import comparisons, costs, parallel, plots, provenance, show, variants

CLASSES = {comparisons.BETTER: 'better', comparisons.WORSE: 'worse'}
KINDS = tuple((lambda text: CLASSES.get(text, 'same')) if name == 'verdict' else '' for name in show.HEAD)
LETTERS = {'<': '\\u003c', '>': '\\u003e', '&': '\\u0026'}


def written(found, directories):
    """Returns the page of a Study of runs in these directories, as the text of one HTML file."""
    flops = costs.per_token([trial for variant in found.variants for trial in variant.trials])
    drawn = {'losses': plots.losses(found, found.metric), 'training': plots.losses(found, 'loss')}
    rates = plots.sensitivity(found)
    drawn |= {'rates': {'rate': rates}} if rates else {}
    body = '\n'.join([_opening(found), _verdicts(found), _plots(drawn), _sources(found), parallel.section(found),
                      _differences(found), provenance.section(found, flops), _samples(found), _left(found)])
    return Template(_file('page.html')).substitute(
        title=html.escape(found.question or 'Report'), body=body,
        style=_file('uplot/uPlot.min.css') + _file('page.css'), library=_file('uplot/uPlot.iife.min.js'),
        plots=_json({name: plot for name, plot in drawn.items() if plot}), script=_file('page.js'))


def _file(name):
    return resources.files('lm.report').joinpath(name).read_text(encoding='utf-8')


def _json(value):
    """Returns JSON that may stand inside an element of a page."""
    return functools.reduce(lambda text, pair: text.replace(*pair), LETTERS.items(), json.dumps(value))


def section(title, *parts):
    """Returns a section with a heading of the parts that are not empty, '' without any."""
    inside = '\n'.join(part for part in parts if part)
    return f'<section>\n<h2>{html.escape(title)}</h2>\n{inside}\n</section>' if inside else ''


def table(head, rows, classes=()):
    """Returns a table that scrolls sideways on a narrow screen. classes: of the columns, '' for none."""
    classes = classes or ('',) * len(head)
    cells = '\n'.join('<tr>' + ''.join(_cell(cell, kind) for cell, kind in zip(row, classes, strict=True)) + '</tr>'
                      for row in rows)
    names = ''.join(f'<th>{html.escape(name)}</th>' for name in head)
    return f'<div class="wide"><table>\n<tr>{names}</tr>\n{cells}\n</table></div>'


def _cell(cell, kind):
    kind = kind(cell) if callable(kind) else kind
    return f'<td{f" class={kind!r}" if kind else ""}>{html.escape(str(cell))}</td>'


def paragraph(text, kind='soft'):
    """Returns a paragraph, '' of an empty text."""
    return f'<p class="{kind}">{html.escape(text)}</p>' if text else ''


def _opening(found):
    trials = [trial for variant in found.variants for trial in variant.trials]
    return (f'<h1>{html.escape(found.question or "What these runs show")}</h1>\n'
            + paragraph(f'Variants: {len(found.variants)}. Runs: {len(trials)}, left out {len(found.left)}. '
                        f'Measured: {found.metric}; lower is better.'))


def _verdicts(found):
    if len(found.variants) == 1:
        score = found.families['tokens'].scores[found.variants[0].name]
        seeds, loss = show.losses(score)
        said = f'One variant and nothing to compare it with. {found.metric}: {loss}, {seeds} seed(s).'
        return section('Result', paragraph(said, ''), paragraph(found.families['tokens'].why))
    return '\n'.join(section(f'At equal {show.UNITS[axis]}', _family(found, family),
                             paragraph(show.footnotes(found, family))) for axis, family in found.families.items())


def _family(found, family):
    if not family.scores:
        return paragraph(family.why[0].upper() + family.why[1:] + '.')
    notes = ''.join(f'<li>{html.escape(note)}</li>' for note in show.notes(family))
    return (paragraph(show.heading(found, family)) + table(show.HEAD, show.verdict_rows(found, family), KINDS)
            + (f'<ul class="soft">{notes}</ul>' if notes else ''))


def _plots(drawn):
    said = {'losses': ('Held-out loss',
                       'Lines are means over seeds at the rate each variant does best with; bands span all seeds.'),
            'training': ('Training loss', 'Smoothing averages over steps; bands span all seeds.'),
            'rates': ('Sensitivity to the rate', 'Bands are one standard deviation over seeds to each side.')}
    return '\n'.join(section(said[name][0], _figure(name, choices, said[name][1]))
                     for name, choices in drawn.items() if choices)


def _figure(name, choices, caption):
    options = ''.join(f'<option value="{axis}">{html.escape(plot["xname"])}</option>' for axis, plot in choices.items())
    axis = f'<label>against <select name="axis">{options}</select></label>' if len(choices) > 1 else ''
    smooth = '<label>smoothing <input type="range" name="smooth" min="0" max="0.98" step="0.02" value="0.6"></label>'
    return (f'<figure data-plot="{name}"><div class="controls">{axis}'
            '<label><input type="checkbox" name="logx" checked>log x</label>'
            '<label><input type="checkbox" name="logy">log y</label>'
            f'{smooth if name == "training" else ""}<button type="button">Save PNG</button></div>'
            f'<div class="plot"></div><figcaption>{html.escape(caption)} Point or touch for values; click a name to '
            'hide it; drag to zoom, double-click to go back.</figcaption></figure>')


def _sources(found):
    return '\n'.join(section(f'Held-out loss of {source}', table(show.HEAD, show.verdict_rows(found, family),
                                                                 KINDS),
                             paragraph(f'p is adjusted over the comparisons of all {len(found.sources)} sources.'))
                     for source, family in found.sources.items())


def _differences(found):
    base, *others = found.variants
    rows = [(other.name, key, before, after) for other in others
            for key, (before, after) in sorted(variants.changed(base.settings, other.settings).items())]
    settings = table(('setting', 'value'), sorted(base.settings.items()), ('', 'long'))
    every = (f'<details><summary>All settings of {html.escape(base.name if others else "this run")}</summary>{settings}'
             '</details>')
    changes = table(('variant', 'setting', 'baseline', 'here'), rows, ('', '', 'long', 'long')) if rows else ''
    return section('Settings', changes, every)


def _samples(found):
    texts = [(variant.name, path) for variant in plots.shown(found) for trial in variant.finished[:1]
             for path in [trial.directory / 'sample.txt'] if path.exists()]
    shown = [(html.escape(name), html.escape(path.read_text(encoding='utf-8')[:2000])) for name, path in texts]
    return section('Samples', *(f'<p>{name}</p><pre>{text}</pre>' for name, text in shown))


def _left(found):
    return section('Left out', table(('run', 'why'), found.left, ('', 'long'))) if found.left else ''
