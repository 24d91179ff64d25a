"""Loss as a curve: at an equal cost, how much longer the baseline would take to reach it, its band over seeds."""
from typing import NamedTuple

import numpy as np

REACH = 4.0  # how many times further than it was trained a curve is extended before the answer is 'more than that'
AXES = ('tokens', 'flops', 'seconds')


def axis(trial, steps, name, flops_per_token=1.0):
    """Returns what training to each of `steps` [n] cost a trial: its tokens, FLOPs or seconds."""
    token = {'tokens': 1.0, 'flops': flops_per_token, 'seconds': 1 / trial.speed}[name]
    return steps * trial.tokens_per_step * token


def value_at(x, y, budget):
    """Returns a curve's value where it has cost `budget`, between its points in log x; NaN outside them."""
    if not len(x) or np.isnan(x).any():
        return np.nan
    if abs(x[-1] / budget - 1) < 1e-6:
        return y[-1]
    if not x[0] <= budget <= x[-1]:
        return np.nan
    return float(np.interp(np.log(budget), np.log(x), y))


class Gain(NamedTuple):
    """How many times a budget the baseline needs to reach the loss that another has reached with it.

    bound: '<' or '>' where only that much is known, else ''. extended: whether the curve was continued past its last
    point by the power law fitted to its second half.
    """

    times: float
    bound: str
    extended: bool


def gains(x, y, losses, budget):
    """Returns {name: Gain} of {name: loss} against the curve (x [n] ascending, y [n]), taken as its least until then.

    Past the last point the curve is a power law with a floor, where it has the points that this needs.
    """
    y = np.minimum.accumulate(y)
    law = power_law(x, y)
    reached = {name: _inside(x, y, loss) if loss >= y[-1] else _past(x[-1], law, loss) for name, loss in losses.items()}
    return {name: gain._replace(times=float(gain.times / budget)) for name, gain in reached.items()}


def _past(end, law, loss):
    """Returns the Gain, in units of x, of a loss below that at the curve's end."""
    if law is None:
        return Gain(end, '>', False)
    floor, scale, power = law
    if loss <= floor:
        return Gain(REACH * end, '>', True)
    cost = max(end, ((loss - floor) / scale) ** (-1 / power))
    return Gain(min(cost, REACH * end), '>' if cost > REACH * end else '', True)


def _inside(x, y, loss):
    """Returns the Gain, in units of x, of a loss that the curve has reached, between its points in log x."""
    if loss > y[0]:
        return Gain(x[0], '<', False)
    at = int(np.argmax(y <= loss))
    if at == 0:
        return Gain(x[0], '', False)
    share = (y[at - 1] - loss) / (y[at - 1] - y[at])
    return Gain(np.exp(np.log(x[at - 1]) + share * np.log(x[at] / x[at - 1])), '', False)


def power_law(x, y):
    """Returns (floor, scale, power) of y = floor + scale * x ** -power fitted to the second half of a curve, or None.

    Least squares in log(y - floor), weighted as if in y, for each of 200 floors; that of the least residual.
    """
    x, y = x[len(x) // 2:], y[len(y) // 2:]
    if len(x) < 3 or not y[0] > y[-1] > 0:
        return None
    best = None
    for floor in np.linspace(0, y[-1] * 0.995, 200):
        slope, height = np.polyfit(np.log(x), np.log(y - floor), 1, w=y - floor)
        residual = np.sum((floor + np.exp(height + slope * np.log(x)) - y) ** 2)
        if slope < 0 and (best is None or residual < best[0]):
            best = residual, floor, np.exp(height), -slope
    return best and best[1:]


def band(curves, points=200):
    """Returns (x, mean, low, high), each [n], of the [(x, y)] of seeds over the costs they share."""
    start, stop = max(x[0] for x, _ in curves), min(x[-1] for x, _ in curves)
    grid = np.unique(np.concatenate([x[(x >= start) & (x <= stop)] for x, _ in curves]))
    if len(grid) > points:
        grid = np.unique(np.geomspace(max(start, 1e-9), stop, points))
    values = np.stack([np.interp(grid, x, y) for x, y in curves])
    return grid, values.mean(0), values.min(0), values.max(0)
