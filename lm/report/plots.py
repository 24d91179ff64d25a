"""What the page draws, as JSON-able data: each plot is a grid of x and, for each variant, mean, low and high on it."""
import numpy as np

from lm.pages.figures import rounded
from lm.report import comparisons, show

SHOWN = 12  # variants in a plot: the baseline and the best of the others
POINTS = 400
COSTS = {'tokens': 'tokens', 'flops': 'training FLOPs', 'seconds': 'seconds of training'}


def shown(found):
    """Returns the variants that plots show, the baseline first."""
    return found.variants[:SHOWN]


def losses(found, name):
    """Returns {cost axis: plot} of what was recorded under a name, for each axis on which it is known."""
    drawn = {axis: _losses(found, axis, name) for axis, family in found.families.items() if family.scores}
    return {axis: plot for axis, plot in drawn.items() if plot}


def _losses(found, axis, name):
    known = {variant.name: [(x, y) for trial in _best(found, variant)
                            for x, y in [found.table.curve(trial, axis, name)] if len(x) > 1 and np.isfinite(x).all()]
             for variant in shown(found)}
    known = {variant: seeds for variant, seeds in known.items() if seeds}
    if not known:
        return None
    every = np.unique(np.concatenate([x for seeds in known.values() for x, _ in seeds]))
    every = every[every > 0]
    grid = every if len(every) <= POINTS else np.geomspace(every[0], every[-1], POINTS)
    return {'x': rounded(grid), 'xname': COSTS[axis], 'yname': show.measured(name),
            'series': [{'name': variant, **_band(grid, seeds)} for variant, seeds in known.items()]}


def _band(grid, seeds):
    values = np.stack([np.interp(grid, x, y, left=np.nan, right=np.nan) for x, y in seeds])
    return {'mean': rounded(values.mean(0)), 'low': rounded(values.min(0)), 'high': rounded(values.max(0))}


def _best(found, variant):
    """Returns the finished trials of a variant at the rate it does best with."""
    rate = found.families['tokens'].scores[variant.name].rate
    return [trial for trial in variant.rates[rate] if trial.state == 'finished']


def sensitivity(found):
    """Returns the plot of loss against rate, mean one deviation over seeds to each side; None without a sweep."""
    value = found.table.values('tokens')
    table = {variant.name: {rate: [loss for t in trials if t.state == 'finished' and np.isfinite(loss := value(t))]
                            for rate, trials in variant.rates.items()}
             for variant in shown(found) if variant.rate_key}
    grid = sorted({rate for rates in table.values() for rate, seeds in rates.items() if seeds and rate})
    if len(grid) < 2:
        return None
    series = []
    for name, rates in table.items():
        scores = [comparisons.Score(dict(enumerate(rates.get(rate, [])))) for rate in grid]
        mean = np.array([np.mean(list(s.losses.values())) if s.losses else np.nan for s in scores])
        spread = np.nan_to_num([comparisons.noise(s) for s in scores])
        series.append({'name': name, 'mean': rounded(mean), 'low': rounded(mean - spread),
                       'high': rounded(mean + spread)})
    return {'x': rounded(np.array(grid, float)), 'xname': found.variants[0].rate_key,
            'yname': show.measured(found.metric), 'series': series}
