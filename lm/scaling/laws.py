"""The scaling law L(N, D) = E + A / N^alpha + B / D^beta: fit, bootstrap, compute-optimal N and D; numpy and scipy.

Hoffmann et al. 2022 (arXiv 2203.15556, approach 3) as corrected by Besiroglu et al. 2024 (arXiv 2404.10102): the Huber
loss is summed, not averaged, and minimised to convergence; intervals are bootstrapped.
"""
from typing import NamedTuple

import numpy as np
from scipy import stats

from lm.scaling import residuals

FLOPS = 6.0  # of training, per parameter and token
LEAST = 8  # points: five coefficients and three degrees of freedom
DELTA = 1e-3  # of the Huber loss on differences of log loss (Hoffmann)
TUNED = 1.345  # the same in standard deviations of the residuals: 95% efficient where they are normal
EXPONENTS = (1e-3, 3.0)  # bounds of alpha and beta
FAR = 6.0  # standard deviations from the law of an outlier, or more where so few runs have larger by chance
DRIFT = 0.01  # log loss per e-fold of FLOPs: what laws of published runs err at least (docs/scaling-and-mup.md)


class Law(NamedTuple):
    """Coefficients of the law: numbers, or arrays [R]."""

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
        """The exponent of the budget in the compute-optimal N; that in D is 1 minus it."""
        return self.beta / (self.alpha + self.beta)

    def optimum(self, flops):
        """Returns the compute-optimal (N, D): of least loss with FLOPS * N * D = `flops`, and neither below 1."""
        product = np.log(flops / FLOPS)
        ratio = np.log(self.alpha * self.A / (self.beta * self.B)) / (self.alpha + self.beta)
        n = np.clip(ratio + product * self.share, 0, product)  # where an exponent is near 0, the least may be anywhere
        return np.exp(n), np.exp(product - n)


class Fit(NamedTuple):
    """A fitted law, the laws [R] of its bootstrap resamples, and how runs deviate from it.

    outliers: which runs [P] are too far from the law to be of it. deviations: of the log loss of the others. axis: of
    what residuals agree, 'size' or 'length', or 'point'. reach: FLOPs of the most costly run. drift: standard deviation
    of the error of the law itself, in log loss per e-fold of FLOPs beyond reach.
    """

    law: Law
    resampled: Law
    deviations: np.ndarray
    outliers: np.ndarray
    axis: str
    reach: float
    drift: float = DRIFT

    @property
    def noise(self):
        """The relative standard deviation of a run's loss around the law."""
        return float(np.sqrt(np.mean(self.deviations ** 2)))

    def interval(self, values):
        """Returns the 95% interval (low, high) of a value of each resample [R]."""
        low, high = np.quantile(values, [0.025, 0.975])
        return float(low), float(high)

    def times(self, n, d):
        """Returns how many times the FLOPs of the most costly run a run takes."""
        return float(FLOPS * n * d / self.reach)

    def predict(self, n, d):
        """Returns (loss, 95% prediction interval) of a run, which has its own noise and, beyond reach, drift."""
        draw, count = np.random.default_rng(1), len(self.resampled.E)
        error = draw.choice(self.deviations, count) * draw.choice([-1, 1], count)
        error = error + self.drift * np.log(max(1, self.times(n, d))) * draw.normal(size=count)
        return float(self.law.loss(n, d)), self.interval(self.resampled.loss(n, d) * np.exp(error))


def fit(n, d, loss, resamples=1000):
    """Returns the Fit of runs of `n` parameters on `d` tokens that reached `loss`, each [P].

    Runs of one N and D are one point, of mean log loss: what the law misses there, all seeds share. The Huber loss has
    delta DELTA, or more where the residuals are wider: with a delta far inside their noise it is the absolute loss.
    Intervals are by the wild bootstrap (Wu 1986), in which every point has noise of its own size.
    """
    n, d, logs = np.asarray(n, float), np.asarray(d, float), np.log(np.asarray(loss, float))
    points, point = np.unique(np.stack([n, d]), axis=1, return_inverse=True)
    point = point.ravel()
    target = np.bincount(point, logs) / np.bincount(point)
    centre = np.log(points).mean(1)
    sizes = np.log(points) - centre[:, None]
    theta = _best(_starts(target), sizes, target, DELTA)
    delta = max(DELTA, TUNED * residuals.spread(target - _parts(theta, sizes)[0][0]))
    theta = _best(theta, sizes, target, delta)
    fitted, shares = (part[0] for part in _parts(theta, sizes))
    residual = target - fitted
    weights = delta / np.maximum(delta, np.abs(residual))
    hats = residuals.hat(_slopes(shares[None], sizes)[0], weights)
    axis, groups = residuals.agreeing(*points, residual)
    freedom = len(target) - len(Law._fields)
    limit = max(FAR, stats.t.isf(0.0005 / len(target), freedom)) * max(DELTA, residuals.spread(residual))
    kept = np.abs(logs - fitted[point]) <= limit
    seeds = point[kept]
    counts = np.bincount(seeds, minlength=len(target))
    middle = np.bincount(seeds, logs[kept], len(target)) / np.maximum(1, counts)
    residual = np.where(counts, middle - fitted, np.clip(residual, -limit, limit))  # of outliers: the largest of none
    drawn = residuals.wild(residuals.freed(residual, hats, groups, 1), axis, groups, resamples)
    own = residuals.freed(residual, hats, np.arange(len(target)), 0.5)
    delta *= np.sqrt(np.mean(drawn ** 2) / max(np.mean(own ** 2), 1e-300))  # in proportion to the errors drawn
    resampled = _descend(np.repeat(theta, resamples, 0), sizes, fitted + drawn, delta)[0]
    return Fit(Law(*(float(x[0]) for x in _law(theta, centre))), _law(resampled, centre),
               deviations=logs[kept] - middle[seeds] + own[seeds], outliers=~kept, axis=axis,
               reach=float(FLOPS * np.max(n * d)))


def _law(theta, centre):
    """Returns the Law of theta [R 5]: log E, the log of both other terms at the centre of the runs, the exponents."""
    e, a, b, alpha, beta = theta.T
    return Law(np.exp(e), np.exp(a + alpha * centre[0]), alpha, np.exp(b + beta * centre[1]), beta)


def _starts(target):
    """Returns a grid of initial theta [192 5]: shares of E and of both terms in the loss, and exponents."""
    floor, middle = np.exp(target.min()), np.exp(target.mean())
    grid = np.meshgrid((0.1, 0.4, 0.7, 0.9), (0.2, 0.5, 0.8), (0.1, 0.3, 0.6, 1.0), (0.1, 0.3, 0.6, 1.0))
    share, split, alpha, beta = (axis.ravel() for axis in grid)
    rest = middle - floor * share
    return np.stack([np.log(floor * share), np.log(rest * split), np.log(rest * (1 - split)), alpha, beta], 1)


def _best(theta, sizes, target, delta):
    theta, cost = _descend(theta, sizes, np.broadcast_to(target, (len(theta), len(target))), delta)
    return theta[[np.argmin(cost)]]


def _parts(theta, sizes):
    """Returns the log of the law's loss [R P] and the share of each term in the loss [R 3 P]."""
    x, y = sizes
    e, a, b, alpha, beta = (column[:, None] for column in theta.T)
    terms = np.stack([np.broadcast_to(e, (len(theta), len(x))), a - alpha * x, b - beta * y], 1)
    top = terms.max(1)
    shares = np.exp(terms - top[:, None])
    return top + np.log(shares.sum(1)), shares / shares.sum(1, keepdims=True)


def _slopes(shares, sizes):
    """Returns the derivatives [R P 5] of the log of the law's loss by theta."""
    return np.stack([*shares.swapaxes(0, 1), -sizes[0] * shares[:, 1], -sizes[1] * shares[:, 2]], -1)


def _huber(residual):
    return np.where(residual < 1, residual ** 2 / 2, residual - 0.5).sum(-1)


def _descend(theta, sizes, target, delta, most=100):
    """Returns (theta [R 5], Huber loss [R]) of the minima found from each of theta [R 5], all rows at once.

    Levenberg-Marquardt on iteratively reweighted least squares. scipy has no batched solver: the 1,193 minimisations of
    a Fit take 0.25 s here, 21 s by its L-BFGS-B and 58 s by its least_squares, to the same loss within 3e-8.
    """
    low, high = target.min(1, keepdims=True), target.max(1, keepdims=True)  # of each row: no row bounds another
    lowest = np.hstack([np.repeat(low - 12, 3, 1), np.full((len(theta), 2), EXPONENTS[0])])
    highest = np.hstack([np.repeat(high, 3, 1), np.full((len(theta), 2), EXPONENTS[1])])  # no term is above all losses
    theta = np.clip(theta, lowest, highest)
    damping = np.full(len(theta), 1e-3)
    value, shares = _parts(theta, sizes)
    cost = _huber(np.abs(value - target) / delta)
    for _ in range(most):
        slopes = _slopes(shares, sizes)
        residual = (value - target) / delta
        weighted = slopes / np.maximum(1, np.abs(residual))[..., None]  # weight of the Huber loss
        curvature = np.swapaxes(weighted, 1, 2) @ slopes / delta
        diagonal = np.einsum('rii->ri', curvature)
        damped = curvature + damping[:, None, None] * np.eye(5) * (diagonal[:, None] + 1e-9)
        step = np.linalg.solve(damped, np.einsum('rpi,rp->ri', weighted, residual)[..., None])[..., 0]
        tried = np.clip(theta - step, lowest, highest)
        tried_value, tried_shares = _parts(tried, sizes)
        tried_cost = _huber(np.abs(tried_value - target) / delta)
        better = tried_cost <= cost
        converged = np.all(np.abs(cost - tried_cost) <= 1e-8 * cost + 1e-20)
        theta, cost = np.where(better[:, None], tried, theta), np.where(better, tried_cost, cost)
        value = np.where(better[:, None], tried_value, value)
        shares = np.where(better[:, None, None], tried_shares, shares)
        damping = np.clip(np.where(better, damping / 5, damping * 4), 1e-12, 1e6)
        if converged:
            break
    return theta, cost
