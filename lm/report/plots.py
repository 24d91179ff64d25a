"""The plots of the page (see pages.figures): loss curves with bands over seeds, and loss against learning rate."""
import numpy as np

from lm.pages.figures import rounded
from lm.report import scores, show

SHOWN = 12  # variants in a plot: the baseline and the best others
POINTS = 400
COSTS = {'tokens': 'tokens', 'flops': 'training FLOPs', 'seconds': 'seconds of training'}


def shown(study):
    """Returns the variants in plots, the baseline first."""
    return study.variants[:SHOWN]


def losses(study, name):
    """Returns {cost axis: plot} of a recorded metric, for each axis with data."""
    drawn = {axis: _losses(study, axis, name) for axis, family in study.families.items() if family.scores}
    return {axis: plot for axis, plot in drawn.items() if plot}


def _losses(study, axis, name):
    curves = {variant.name: [(x, y) for trial in _best(study, variant)
                             for x, y in [study.table.curve(trial, axis, name)] if len(x) > 1 and np.isfinite(x).all()]
              for variant in shown(study)}
    curves = {variant: seeds for variant, seeds in curves.items() if seeds}
    if not curves:
        return None
    points = np.unique(np.concatenate([x for seeds in curves.values() for x, _ in seeds]))
    points = points[points > 0]
    grid = points if len(points) <= POINTS else np.geomspace(points[0], points[-1], POINTS)
    return {'x': rounded(grid), 'xname': COSTS[axis], 'yname': show.measured(name),
            'series': [{'name': variant, **_band(grid, seeds)} for variant, seeds in curves.items()]}


def _band(grid, seeds):
    values = np.stack([np.interp(grid, x, y, left=np.nan, right=np.nan) for x, y in seeds])
    return {'mean': rounded(values.mean(0)), 'low': rounded(values.min(0)), 'high': rounded(values.max(0))}


def _best(study, variant):
    """Returns the finished trials of a variant at its best rate."""
    rate = study.families['tokens'].scores[variant.name].rate
    return [trial for trial in variant.rates[rate] if trial.state == 'finished']


def sensitivity(study):
    """Returns the plot of loss against learning rate, mean ± standard deviation over seeds; None if no rate was swept.
    """
    value = study.values()
    table = {variant.name: {rate: [loss for t in trials if t.state == 'finished' and np.isfinite(loss := value(t))]
                            for rate, trials in variant.rates.items()}
             for variant in shown(study) if variant.rate_key}
    grid = sorted({rate for rates in table.values() for rate, seeds in rates.items() if seeds and rate})
    if len(grid) < 2:
        return None
    series = []
    for name, rates in table.items():
        points = [scores.Score(dict(enumerate(rates.get(rate, [])))) for rate in grid]
        mean = np.array([point.mean if point.losses else np.nan for point in points])
        spread = np.nan_to_num([point.spread for point in points])
        series.append({'name': name, 'mean': rounded(mean), 'low': rounded(mean - spread),
                       'high': rounded(mean + spread)})
    return {'x': rounded(np.array(grid, float)), 'xname': study.variants[0].rate_key,
            'yname': show.measured(study.metric), 'series': series}
