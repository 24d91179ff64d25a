"""Loss curves along an axis of cost, and their value at a budget."""
import numpy as np

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
