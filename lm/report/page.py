"""A study as one HTML file that holds everything it needs."""
import functools
import html
import json
from importlib import resources
from pathlib import Path
from string import Template

from lm.config import Error
from lm.report import comparisons, costs, parallel, plots, provenance, show, tags, variants

CLASSES = {comparisons.BETTER: 'better', comparisons.WORSE: 'worse'}
KINDS = tuple((lambda text: CLASSES.get(text, 'same')) if name == 'verdict' else '' for name in show.HEAD)
LETTERS = {'<': '\\u003c', '>': '\\u003e', '&': '\\u0026'}


def written(found, directories):
    """Returns the page of a Study of runs in these directories, as the text of one HTML file."""
    flops = found.table.flops or costs.per_token(found.variants[0].finished) or {}
    drawn = {'losses': plots.losses(found, found.metric), 'training': plots.losses(found, 'loss')}
    rates = plots.sensitivity(found)
    drawn |= {'rates': {'rate': rates}} if rates else {}
    body = '\n'.join([_opening(found), _verdicts(found), _plots(drawn, found), _sources(found), parallel.section(found),
                      _differences(found), provenance.section(found, flops), _samples(found), _left(found)])
    return document(found.question or 'Report', body, drawn)


def document(title, body, drawn):
    """Returns a page of a body whose figures draw {name: {choice: plot}}, as the text of one HTML file."""
    return Template(_file('page.html')).substitute(
        title=html.escape(title), body=body,
        style=_file('uplot/uPlot.min.css') + _file('page.css'), library=_file('uplot/uPlot.iife.min.js'),
        plots=_json({name: plot for name, plot in drawn.items() if plot}),
        script=_file('page.save.js') + _file('page.js'))


def write(path, text):
    """Writes a page into a file; raises config.Error where that cannot be."""
    try:
        Path(path).write_text(text, encoding='utf-8')
    except OSError as error:
        raise Error(f'cannot write {path}: {error.strerror}; give another --html.') from error


def _file(name):
    return resources.files('lm.report').joinpath(name).read_text(encoding='utf-8')


def _json(value):
    """Returns JSON that may stand inside an element of a page."""
    return functools.reduce(lambda text, pair: text.replace(*pair), LETTERS.items(), json.dumps(value))


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
    said = {'losses': ('Held-out loss',
                       'Lines are means over seeds at the rate each variant does best with; bands span all seeds.'),
            'training': ('Training loss', 'Smoothing averages over steps; bands span all seeds.'),
            'rates': ('Sensitivity to the rate', 'Bands are one standard deviation over seeds to each side.')}
    return '\n'.join(tags.section(said[name][0], figure(name, against(choices), said[name][1] + few))
                     for name, choices in drawn.items() if choices)


def against(choices):
    """Returns {choice: what it is called} of the plots {choice: plot} that differ in their x axis."""
    return {choice: f'against {plot["xname"]}' for choice, plot in choices.items()}


def figure(name, choices, caption, logy=''):
    """Returns the figure of the plots {choice: what it is called} of a name. logy: 'checked' for a logarithmic y."""
    options = ''.join(f'<option value="{choice}">{html.escape(called)}</option>' for choice, called in choices.items())
    axis = f'<label><select name="axis">{options}</select></label>' if len(choices) > 1 else ''
    smooth = '<label>smoothing <input type="range" name="smooth" min="0" max="0.98" step="0.02" value="0.6"></label>'
    return (f'<figure data-plot="{name}"><div class="controls">{axis}'
            '<label><input type="checkbox" name="logx" checked>log x</label>'
            f'<label><input type="checkbox" name="logy" {logy}>log y</label>'
            f'{smooth if name == "training" else ""}'
            '<span><button type="button" name="png">Save PNG</button> '
            '<button type="button" name="svg">Save SVG</button></span></div>'
            f'<div class="plot"></div><figcaption>{html.escape(caption)} Point or touch for values; click a name to '
            'hide it; drag to zoom, double-click to go back.</figcaption></figure>')


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
