"""A fitted scaling law as one HTML file: the law beside the runs, and the compute-optimal frontier."""
import numpy as np

from lm.pages import document, figures, tags
from lm.pages.figures import rounded
from lm.pages.text import short
from lm.report.show import measured
from lm.scaling import laws, show

SHOWN = 8  # sizes or lengths in a plot, one per colour
POINTS = 60


def render(findings):
    """Returns the page of Findings as the text of one HTML file."""
    runs = findings.points
    title = f'How {runs.metric} falls with size and data'
    drawn = {'law': {'tokens': _curves(findings, (runs.d, runs.n), 'training tokens', 'N'),
                     'size': _curves(findings, (runs.n, runs.d), 'parameters', 'D')},
             'frontier': {'flops': _frontier(findings)}}
    body = '\n'.join([
        f'<h1>{title}</h1>', tags.paragraph(show.opening(runs)),
        tags.section('The law', tags.table(('', 'value', '95%'), show.law_rows(findings.fit)),
                     tags.paragraph(show.accuracy(findings)), *map(tags.paragraph, show.notes(findings))),
        _table('Backtests', show.BACKTEST, list(map(show.backtest_row, findings.backtests))),
        _table('Predictions', show.PREDICTION, list(map(show.prediction_row, findings.predictions))),
        _table('Compute-optimal budgets', show.ADVICE, list(map(show.advice_row, findings.advices))),
        tags.section('Runs and law', figures.figure(
            'law', figures.by_axis(drawn['law']),
            'Dots are runs; lines are the law with its 95% band.')),
        tags.section('Compute-optimal frontier', figures.figure(
            'frontier', figures.by_axis(drawn['frontier']),
            'The line is the loss at the best N and D, the band that of 95% of such runs.')),
        tags.section('Runs', tags.table(('run', 'N', 'D', runs.metric), _runs(runs))),
        tags.section('Left out', tags.table(('run', 'why'), runs.left_out, ('', 'long'))) if runs.left_out else ''])
    return document.render(title, body, drawn)


def _table(title, head, rows):
    return tags.section(title, tags.table(head, rows)) if rows else ''


def _runs(runs):
    return [(trial.name, short(n), short(d), f'{loss:.4f}')
            for trial, n, d, loss in zip(runs.trials, runs.n, runs.d, runs.loss, strict=True)]


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
    """Returns the series of the mean loss over the runs `kept` at each x of a grid, as dots."""
    x, loss = places
    losses = [loss[kept & (x == at)] for at in grid]
    return {'name': name, 'dots': True, 'mean': rounded([some.mean() if some.size else np.nan for some in losses])}


def _frontier(findings):
    """Returns the plot of loss against FLOPs: of the runs, and at the best N and D up to the largest budget."""
    runs, fit = findings.points, findings.fit
    cost = laws.FLOPS * runs.n * runs.d
    most = max([3 * cost.max(), *(advice.flops for advice in findings.advices)])
    grid = np.unique(np.concatenate([cost, np.geomspace(cost.min(), most, POINTS)]))
    bounds = np.array([fit.predict(*fit.law.optimum(flops))[1] for flops in grid])
    best = {'name': 'best N and D', 'mean': rounded(fit.law.loss(*fit.law.optimum(grid))), 'low': rounded(bounds[:, 0]),
            'high': rounded(bounds[:, 1])}
    return {'x': rounded(grid), 'xname': 'training FLOPs, 6 N D', 'yname': measured(runs.metric),
            'series': [best, _dots('runs', (cost, runs.loss), np.full(len(cost), True), grid)]}
