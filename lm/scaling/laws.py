"""The law L(N, D) = E + A / N^alpha + B / D^beta: fitted, resampled, and solved for a budget; pure numpy and scipy.

Hoffmann et al. 2022 (arXiv 2203.15556, approach 3) with what Besiroglu et al. 2024 (arXiv 2404.10102) corrected: the
loss is summed, the search goes on until it stands still, and intervals are resampled.
"""
from typing import NamedTuple

import numpy as np
from scipy import stats

FLOPS = 6.0  # of training on a token, for each parameter
LEAST = 8  # runs: five coefficients are fitted, and three more say how well
SHARP = 1e-3  # where the Huber loss, of differences of log loss, turns from squares to absolute values (Hoffmann)
TUNED = 1.345  # the same in deviations of the residuals, where the least squares of normal ones are nearly reached
EXPONENTS = (1e-3, 3.0)


class Law(NamedTuple):
    """Coefficients of the law, numbers or arrays [R]."""

    E: float
    A: float
    alpha: float
    B: float
    beta: float

    def loss(self, n, d):
        """Returns the loss of `n` parameters trained on `d` tokens."""
        return self.E + self.A / n ** self.alpha + self.B / d ** self.beta

    @property
    def share(self):
        """The power of the budget with which the best N grows; that of D is what remains to 1."""
        return self.beta / (self.alpha + self.beta)

    def optimum(self, flops):
        """Returns the (N, D) of least loss with FLOPS * N * D = `flops`."""
        ratio = (self.alpha * self.A / (self.beta * self.B)) ** (1 / (self.alpha + self.beta))
        product = flops / FLOPS
        return ratio * product ** self.share, product ** (1 - self.share) / ratio


class Fit(NamedTuple):
    """A fitted law, the laws [R] of its resamples, and the residuals [P] of the log loss, as spread as its noise.

    tail: the share of resamples beyond each end of an interval of 95%.
    """

    law: Law
    resampled: Law
    residuals: np.ndarray
    tail: float

    @property
    def noise(self):
        """The standard deviation of a run's loss around the law, as a share of the loss."""
        return float(np.sqrt(np.mean(self.residuals ** 2)))

    def interval(self, values):
        """Returns the (low, high) of 95% of what was computed of each resample, [R]."""
        low, high = np.quantile(values, [self.tail, 1 - self.tail])
        return float(low), float(high)

    def predict(self, n, d):
        """Returns the loss of a run and the interval of 95% that it, with its own noise, should be in."""
        drawn = np.random.default_rng(1).choice(self.residuals, len(self.resampled.E))
        return float(self.law.loss(n, d)), self.interval(self.resampled.loss(n, d) * np.exp(drawn))


def fit(n, d, loss, resamples=1000):
    """Returns the Fit of runs of `n` parameters on `d` tokens that reached `loss`, each [P].

    The Huber loss is turned at SHARP, or further out where the residuals are wider: as far inside their noise it would
    be that of absolute values, whose intervals were seen to hold the truth in 87 to 93 of 100 cases, not 95. Intervals
    are of resampled residuals, so that every resample has all sizes, with the tails that P - 5 degrees of freedom ask
    for (Hesterberg 2015, arXiv 1411.5279, section 5).
    """
    n, d, target = np.asarray(n, float), np.asarray(d, float), np.log(np.asarray(loss, float))
    centre = np.log(n).mean(), np.log(d).mean()
    sizes = np.log(n) - centre[0], np.log(d) - centre[1]
    freedom = len(target) - len(Law._fields)
    theta = _best(_starts(target), sizes, target, SHARP)
    widen = np.sqrt(len(target) / freedom)
    turn = max(SHARP, TUNED * 1.4826 * widen * np.median(np.abs(target - _parts(theta, sizes)[0][0])))
    theta = _best(theta, sizes, target, turn)
    fitted = _parts(theta, sizes)[0][0]
    residuals = (target - fitted - np.mean(target - fitted)) * widen
    drawn = np.random.default_rng(0).choice(residuals, (resamples, len(target)))
    again = _descend(np.repeat(theta, resamples, 0), sizes, fitted + drawn, turn)[0]
    tail = stats.norm.cdf(-stats.t.ppf(0.975, freedom))
    return Fit(Law(*(float(x[0]) for x in _law(theta, centre))), _law(again, centre), residuals, float(tail))


def _law(theta, centre):
    """Returns the Law of theta [R 5]: log E, and the log of each term at the centre of the runs, and the exponents."""
    e, a, b, alpha, beta = theta.T
    return Law(np.exp(e), np.exp(a + alpha * centre[0]), alpha, np.exp(b + beta * centre[1]), beta)


def _starts(target):
    """Returns the grid of starts [192 5]: shares of the floor and of the terms in the loss, and exponents."""
    floor, middle = np.exp(target.min()), np.exp(target.mean())
    grid = np.meshgrid((0.1, 0.4, 0.7, 0.9), (0.2, 0.5, 0.8), (0.1, 0.3, 0.6, 1.0), (0.1, 0.3, 0.6, 1.0))
    share, split, alpha, beta = (axis.ravel() for axis in grid)
    rest = middle - floor * share
    return np.stack([np.log(floor * share), np.log(rest * split), np.log(rest * (1 - split)), alpha, beta], 1)


def _best(theta, sizes, target, turn):
    theta, cost = _descend(theta, sizes, np.broadcast_to(target, (len(theta), len(target))), turn)
    return theta[[np.argmin(cost)]]


def _parts(theta, sizes):
    """Returns the log of the law's loss [R P] and the share of each term in the loss, [R 3 P]."""
    x, y = sizes
    e, a, b, alpha, beta = (column[:, None] for column in theta.T)
    terms = np.stack([np.broadcast_to(e, (len(theta), len(x))), a - alpha * x, b - beta * y], 1)
    top = terms.max(1)
    shares = np.exp(terms - top[:, None])
    return top + np.log(shares.sum(1)), shares / shares.sum(1, keepdims=True)


def _cost(off):
    return np.where(off < 1, off ** 2 / 2, off - 0.5).sum(-1)


def _descend(theta, sizes, target, turn, most=100):
    """Returns theta [R 5] of the least Huber loss around each of theta [R 5], and that loss [R].

    Levenberg's and Marquardt's steps, of reweighted squares, for all rows at once: the same minima as L-BFGS from each,
    in a hundredth of the time.
    """
    lowest = np.r_[np.full(3, target.min() - 12), np.full(2, EXPONENTS[0])]
    highest = np.r_[target.min(), np.full(2, target.max() + 5), np.full(2, EXPONENTS[1])]
    damping = np.full(len(theta), 1e-3)
    value, shares = _parts(theta, sizes)
    cost = _cost(np.abs(value - target) / turn)
    for _ in range(most):
        slopes = np.stack([*shares.swapaxes(0, 1), -sizes[0] * shares[:, 1], -sizes[1] * shares[:, 2]], -1)
        off = (value - target) / turn
        weighted = slopes / np.maximum(1, np.abs(off))[..., None]
        curvature = np.swapaxes(weighted, 1, 2) @ slopes / turn
        diagonal = np.einsum('rii->ri', curvature)
        damped = curvature + damping[:, None, None] * np.eye(5) * (diagonal[:, None] + 1e-9)
        step = np.linalg.solve(damped, np.einsum('rpi,rp->ri', weighted, off)[..., None])[..., 0]
        tried = np.clip(theta - step, lowest, highest)
        tried_value, tried_shares = _parts(tried, sizes)
        tried_cost = _cost(np.abs(tried_value - target) / turn)
        better = tried_cost <= cost
        still = np.all(np.abs(cost - tried_cost) <= 1e-8 * cost + 1e-20)
        theta, cost = np.where(better[:, None], tried, theta), np.where(better, tried_cost, cost)
        value = np.where(better[:, None], tried_value, value)
        shares = np.where(better[:, None, None], tried_shares, shares)
        damping = np.clip(np.where(better, damping / 5, damping * 4), 1e-12, 1e6)
        if still:
            break
    return theta, cost
