"""Loss as a curve: at an equal cost, how much longer the baseline would take to reach it, its band over seeds."""
from typing import NamedTuple

import numpy as np

REACH = 4.0  # how many times further than it was trained a curve is extended before the answer is 'more than that'
AXES = ('tokens', 'flops', 'seconds')


def axis(trial, steps, name, flops_per_token=1.0):
    """Returns what training to each of `steps` [n] cost a trial: its tokens, FLOPs or seconds."""
    if name == 'seconds':
        known, seconds = trial.timeline
        if not known.size:
            return np.full(len(steps), np.nan)
        return np.interp(steps, np.concatenate([[0], known]), np.concatenate([[0], seconds]))
    return steps * trial.tokens_per_step * (flops_per_token if name == 'flops' else 1.0)


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
    """How many times its own cost the baseline needs to reach a loss. bound: '' or '>' where only that much is known.

    extended: whether the curve was continued past its last point by the power law fitted to its second half.
    """

    times: float
    bound: str
    extended: bool


def gains(x, y, losses):
    """Returns {name: Gain} of {name: loss} against the curve (x [n] ascending, y [n]), taken as its least until then.

    Past the last point the curve is a power law with a floor; None where it has fewer points than that needs.
    """
    y = np.minimum.accumulate(y)
    law = power_law(x, y)
    return {name: _inside(x, y, loss) if loss >= y[-1] else _past(x[-1], law, loss) for name, loss in losses.items()}


def _past(end, law, loss):
    if law is None:
        return None
    floor, scale, power = law
    if loss <= floor:
        return Gain(REACH, '>', True)
    times = ((loss - floor) / scale) ** (-1 / power) / end
    return Gain(min(times, REACH), '>' if times > REACH else '', True) if times >= 1 else Gain(1.0, '', True)


def _inside(x, y, loss):
    if loss > y[0]:
        return Gain(x[0] / x[-1], '<', False) if len(x) > 1 else None
    at = int(np.argmax(y <= loss))
    if at == 0:
        return Gain(x[0] / x[-1], '', False)
    share = (y[at - 1] - loss) / (y[at - 1] - y[at])
    return Gain(float(np.exp(np.log(x[at - 1]) + share * np.log(x[at] / x[at - 1])) / x[-1]), '', False)


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
