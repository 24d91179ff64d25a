"""Loss curves: value at a budget, gain over the baseline in budget, band over seeds."""
from typing import NamedTuple

import numpy as np

REACH = 4.0  # a curve is extrapolated to this many times its length; beyond, a gain is '>'
AXES = ('tokens', 'flops', 'seconds')


def axis(trial, steps, name, flops_per_token=1.0):
    """Returns the cost [n] of training a trial to each of `steps` [n]: tokens, FLOPs or seconds."""
    per_token = {'tokens': 1.0, 'flops': flops_per_token, 'seconds': 1 / trial.speed}[name]
    return steps * trial.tokens_per_step * per_token


def value_at(x, y, budget):
    """Returns a curve's value at a budget, interpolated in log x; NaN outside the curve."""
    if not len(x) or np.isnan(x).any():
        return np.nan
    if abs(x[-1] / budget - 1) < 1e-6:
        return y[-1]
    if not x[0] <= budget <= x[-1]:
        return np.nan
    return float(np.interp(np.log(budget), np.log(x), y))


class Gain(NamedTuple):
    """The budget that the baseline needs to reach another variant's loss, as a multiple of that variant's budget.

    bound: '<' or '>' if `times` is only a bound, else ''. extended: whether the curve was extrapolated by the power law
    fitted to its second half.
    """

    times: float
    bound: str
    extended: bool


def gains(x, y, losses, budget):
    """Returns {name: Gain} of {name: loss} against the running minimum of a curve, x [n] ascending and y [n].

    Beyond its end the curve is extrapolated by `power_law` where that can be fitted.
    """
    y = np.minimum.accumulate(y)
    law = power_law(x, y)
    reached = {name: _interpolated(x, y, loss) if loss >= y[-1] else _extrapolated(x[-1], law, loss)
               for name, loss in losses.items()}
    return {name: gain._replace(times=float(gain.times / budget)) for name, gain in reached.items()}


def _extrapolated(end, law, loss):
    """Returns the Gain, in units of x, of a loss below the curve's last."""
    if law is None:
        return Gain(end, '>', False)
    floor, scale, power = law
    if loss <= floor:
        return Gain(REACH * end, '>', True)
    cost = max(end, ((loss - floor) / scale) ** (-1 / power))
    return Gain(min(cost, REACH * end), '>' if cost > REACH * end else '', True)


def _interpolated(x, y, loss):
    """Returns the Gain, in units of x, of a loss that the curve has reached, interpolated in log x."""
    if loss > y[0]:
        return Gain(x[0], '<', False)
    at = int(np.argmax(y <= loss))
    if at == 0:
        return Gain(x[0], '', False)
    share = (y[at - 1] - loss) / (y[at - 1] - y[at])
    return Gain(np.exp(np.log(x[at - 1]) + share * np.log(x[at] / x[at - 1])), '', False)


def power_law(x, y):
    """Returns (floor, scale, power) of y = floor + scale * x ** -power fitted to the second half of a curve, or None.

    For each of 200 floors a line is fitted to log(y - floor), weighted by y - floor to approximate least squares in y;
    the fit of least residual in y is returned.
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
    """Returns (x, mean, low, high), each [n], of the curves [(x, y)] of seeds where they overlap in x."""
    start, stop = max(x[0] for x, _ in curves), min(x[-1] for x, _ in curves)
    grid = np.unique(np.concatenate([x[(x >= start) & (x <= stop)] for x, _ in curves]))
    if len(grid) > points:
        grid = np.unique(np.geomspace(max(start, 1e-9), stop, points))
    values = np.stack([np.interp(grid, x, y) for x, y in curves])
    return grid, values.mean(0), values.min(0), values.max(0)
