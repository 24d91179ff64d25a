"""What the residuals of a fitted law tell: their scale, their leverage, and whether those of a size or length agree."""
import numpy as np

PARAMETERS = 5  # of the law
LOOSE = 0.1  # least 1 - leverage: a point that the fit follows wherever it lies says nothing of its noise
ALIKE = 0.01  # difference of log N or log D within one size or length
GROUPS = 5  # sizes or lengths, at least: the law takes three coefficients of each
SHUFFLES = 999


def spread(residual):
    """Returns the standard deviation of residuals [P], robust: 1.4826 times their median absolute value.

    The least PARAMETERS are left out: a fit of least absolute residuals makes so many zero.
    """
    return 1.4826 * np.median(np.sort(np.abs(residual))[PARAMETERS:])


def hat(slopes, weights):
    """Returns the matrix [P P] that maps losses to fitted losses, near a minimum with slopes [P 5], weights [P]."""
    weighted = slopes * weights[:, None]
    return slopes @ np.linalg.pinv(weighted.T @ slopes, 1e-10, hermitian=True) @ weighted.T


def freed(residual, hats, groups, power):
    """Returns residuals [P] times (1 - leverage)^-power, a matrix by group [P].

    Power 1/2 gives them the scale of the noise (HC2), power 1 that of a fit which did not see their group (HC3 and CR3:
    MacKinnon and White 1985; Bell and McCaffrey 2002).
    """
    free = np.empty_like(residual)
    for group in range(groups.max() + 1):
        own = groups == group
        left, values, right = np.linalg.svd(np.eye(own.sum()) - hats[np.ix_(own, own)])
        free[own] = left / np.maximum(values, LOOSE) ** power @ (right @ residual[own])
    return free


def agreeing(n, d, residual):
    """Returns (axis, group of each point [P]) of what shares its noise: 'size', 'length', or each 'point' alone.

    A size or length does where the sums of its residuals are larger than in 95% of shuffles.
    """
    shuffled = np.random.default_rng(2).permuted(np.tile(residual, (SHUFFLES, 1)), axis=1)
    likely, chosen = 0.05, ('point', np.arange(len(residual)))
    for axis, values in (('size', np.log(n)), ('length', np.log(d))):
        order = np.argsort(values)
        groups = np.empty(len(values), int)
        groups[order] = np.cumsum(np.diff(values[order], prepend=values[order[0]]) > ALIKE)
        if not GROUPS <= groups.max() + 1 <= len(values) / 2:
            continue
        members = np.eye(groups.max() + 1)[groups]
        sums = ((np.vstack([residual, shuffled]) @ members) ** 2).sum(1)
        chance = np.mean(sums >= sums[0])
        if chance < likely:
            likely, chosen = chance, (axis, groups)
    return chosen


def wild(free, axis, groups, count):
    """Returns [count P] errors for a wild bootstrap: residuals freed by group [P] times a random sign of their group.

    All errors of a resample have one further factor, which makes them as uncertain in scale as so few residuals are.
    """
    draw = np.random.default_rng(0)
    freedom = groups.max() + 1 - (PARAMETERS if axis == 'point' else 3)
    signs = draw.choice([-1.0, 1.0], (count, groups.max() + 1))[:, groups]
    return signs * free * np.sqrt(freedom / draw.chisquare(freedom, (count, 1)))
