"""Backtests: laws of a sweep's cheaper runs against its costlier ones; how far a law errs beyond its runs."""
from typing import NamedTuple

import numpy as np

from lm.scaling import laws

CUTS = (10, 3, 1.5)  # the FLOPs of the most costly run over those of the most costly run fitted
BEYOND = 10  # times the FLOPs fitted to, at most


class Backtest(NamedTuple):
    """A law fitted to `fitted` runs of up to `reach` FLOPs, on runs of more.

    times [Q]: their FLOPs over reach. errors [Q]: their log loss less the predicted. noise: of the runs fitted.
    """

    reach: float
    fitted: int
    times: np.ndarray
    errors: np.ndarray
    noise: float

    @property
    def drift(self):
        """The standard deviation of the error of the law, in log loss per e-fold of FLOPs, without the runs' noise."""
        excess = np.sum(self.errors ** 2 - self.noise ** 2) / np.sum(np.log(self.times) ** 2)
        return float(np.sqrt(max(0, excess)))


def backtest(n, d, loss):
    """Returns the Backtests of runs [P] of `n` parameters, `d` tokens and `loss`, for all CUTS that leave enough."""
    flops, tests = laws.FLOPS * n * d, []
    for cut in CUTS:
        kept = flops <= flops.max() / cut
        points = set(zip(n[kept], d[kept], strict=True))
        if len(points) < laws.LEAST or min(len(set(n[kept])), len(set(d[kept]))) < 3:
            continue
        fit = laws.fit(n[kept], d[kept], loss[kept], resamples=1)
        times = flops / fit.reach
        tried = ~kept & (times <= BEYOND)
        if tried.any():
            errors = np.log(loss[tried] / fit.law.loss(n[tried], d[tried]))
            tests.append(Backtest(fit.reach, int(kept.sum()), times[tried], errors, fit.noise))
    return tests


def widened(fit, tests):
    """Returns a Fit with the largest drift of its Backtests: runs beyond one cut err together, so that cuts are few."""
    return fit._replace(drift=max([fit.drift, *(test.drift for test in tests)]))
