"""What was found of a sweep of sizes as one HTML file: the law beside the runs, and the best of a budget."""
import numpy as np

from lm.pages import document, figures, tags
from lm.pages.figures import rounded
from lm.pages.text import short
from lm.report.show import measured
from lm.scaling import laws, show

SHOWN = 8  # sizes or lengths in a plot: as many as there are colours
POINTS = 60


def written(findings):
    """Returns the page of Findings as the text of one HTML file."""
    found = findings.points
    title = f'How {found.metric} falls with size and data'
    drawn = {'law': {'tokens': _curves(findings, (found.d, found.n), 'tokens seen', 'N'),
                     'size': _curves(findings, (found.n, found.d), 'parameters', 'D')},
             'frontier': {'flops': _frontier(findings)}}
    body = '\n'.join([
        f'<h1>{title}</h1>', tags.paragraph(show.opening(found)),
        tags.section('The law', tags.table(('', 'value', '95%'), show.law_rows(findings.fit)),
                     tags.paragraph(show.foretold(findings)), *map(tags.paragraph, show.notes(findings))),
        _asked('Runs foretold', show.GUESSED, list(map(show.guess_row, findings.guesses))),
        _asked('What to spend a budget on', show.ADVISED, list(map(show.advice_row, findings.advices))),
        tags.section('Runs and law', figures.figure(
            'law', figures.by_axis(drawn['law']),
            'Dots are runs; lines are the law, with the band that 95% of resamples are in.')),
        tags.section('The best of a budget', figures.figure(
            'frontier', figures.by_axis(drawn['frontier']),
            'The line is the loss of the best N and D, the band that of 95% of such runs.')),
        tags.section('Runs', tags.table(('run', 'N', 'D', found.metric), _runs(found))),
        tags.section('Left out', tags.table(('run', 'why'), found.left, ('', 'long'))) if found.left else ''])
    return document.render(title, body, drawn)


def _asked(title, head, rows):
    return tags.section(title, tags.table(head, rows)) if rows else ''


def _runs(found):
    return [(trial.name, short(n), short(d), f'{loss:.4f}')
            for trial, n, d, loss in zip(found.trials, found.n, found.d, found.loss, strict=True)]


def _curves(findings, axes, xname, letter):
    """Returns the plot of loss against one of N and D for each of up to SHOWN values of the other."""
    x, other = axes
    fit, series = findings.fit, []
    kinds = np.unique(other)
    kinds = kinds[np.unique(np.linspace(0, len(kinds) - 1, SHOWN).round().astype(int))]
    grid = np.unique(np.concatenate([x, np.geomspace(x.min(), x.max() * 3, POINTS)]))
    for colour, kind in enumerate(kinds):
        sizes = (kind, grid) if letter == 'N' else (grid, kind)
        bounds = np.array([fit.interval(fit.resampled.loss(*pair)) for pair in np.broadcast(*sizes)])
        series.append({'name': f'{letter} = {short(kind)}', 'colour': colour,
                       'mean': rounded(fit.law.loss(*sizes)), 'low': rounded(bounds[:, 0]),
                       'high': rounded(bounds[:, 1])})
        series.append(_dots(f'{letter} = {short(kind)}, runs', (x, findings.points.loss), other == kind, grid)
                      | {'colour': colour})
    return {'x': rounded(grid), 'xname': xname, 'yname': measured(findings.points.metric), 'series': series}


def _dots(name, places, kept, grid):
    """Returns the series of the mean over the runs `kept` at each x of a grid, without a line."""
    x, loss = places
    seen = [loss[kept & (x == at)] for at in grid]
    return {'name': name, 'dots': True, 'mean': rounded([each.mean() if each.size else np.nan for each in seen])}


def _frontier(findings):
    """Returns the plot of loss against FLOPs: of the runs, and of the best N and D as far as the largest budget."""
    found, fit = findings.points, findings.fit
    cost = laws.FLOPS * found.n * found.d
    most = max([3 * cost.max(), *(advice.flops for advice in findings.advices)])
    grid = np.unique(np.concatenate([cost, np.geomspace(cost.min(), most, POINTS)]))
    bounds = np.array([fit.predict(*fit.law.optimum(flops))[1] for flops in grid])
    best = {'name': 'best N and D', 'mean': rounded(fit.law.loss(*fit.law.optimum(grid))), 'low': rounded(bounds[:, 0]),
            'high': rounded(bounds[:, 1])}
    return {'x': rounded(grid), 'xname': 'training FLOPs, 6 N D', 'yname': measured(found.metric),
            'series': [best, _dots('runs', (cost, found.loss), np.full(len(cost), True), grid)]}
