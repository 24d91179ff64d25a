"""Published tables of runs, and designs of sweeps whose law is known."""
import pathlib

import numpy as np

from lm.scaling import laws

BESIROGLU = laws.Law(1.8172, 482.01, 0.3478, 2085.43, 0.3658)
ROWS = [line.split(',') for line in (pathlib.Path(__file__).parent / 'scaling_tables.csv').read_text().splitlines()
        if line[0] != '#'][1:]


def table(name):
    """Returns n, d and loss of a table of scaling_tables.csv, in the order of loss."""
    return np.array(sorted((row[1:] for row in ROWS if row[0] == name), key=lambda row: float(row[2])), float).T


def chinchilla():
    """Returns n, d and loss of the 240 runs that Besiroglu et al. fit: without the five of highest loss."""
    return table('chinchilla')[:, :240]


def grid(sizes, lengths, larger=1.0):
    """Returns n and d of all pairs of so many sizes and lengths, the largest some times larger."""
    n, d = np.meshgrid(np.geomspace(4e7, 1.6e10 * larger, sizes), np.geomspace(1e9, 4e11 * larger, lengths))
    return n.ravel(), d.ravel()


def isoflops():
    """Returns n and d of six sizes around the best of each of five budgets."""
    budgets, away = np.geomspace(1e19, 1e22, 5), np.geomspace(0.2, 5, 6)
    n = np.outer(np.sqrt(budgets / 120), away).ravel()
    return n, np.repeat(budgets, 6) / 6 / n


def designs():
    """Returns {name: (n, d, noise of each point, noise that points of a size share, error of one run: an outlier)}."""
    n, d, loss = chinchilla()
    own = np.abs(np.log(loss / laws.fit(n, d, loss, resamples=1).law.loss(n, d)))
    even, flops, uneven = grid(5, 5), isoflops(), grid(6, 4)
    return {'grid': (*even, np.full(25, 0.01), 0, 0), 'small': (*grid(3, 3), np.full(9, 0.005), 0, 0),
            'isoflops': (*flops, 0.002 * (1 + 3 * np.abs(np.log(flops[0] / np.sqrt(flops[0] * flops[1] / 20)))), 0, 0),
            'uneven': (*uneven, 0.012 * (uneven[1] / 1e9) ** -0.4, 0, 0), 'chinchilla': (n, d, own, 0, 0),
            'sizes': (*grid(8, 4), np.full(32, 0.004), 0.006, 0),
            'floor': (*grid(6, 6, 1e4), np.full(36, 0.01), 0, 0),
            'outlier': (*even, np.full(25, 0.01), 0, np.log(3))}


def drawn(design, seeds, draw):
    """Returns n, d and loss of runs of a design, `seeds` for each point, which share what the law misses there."""
    n, d, noise, shared, off = design
    sizes, size = np.unique(n, return_inverse=True)
    error = noise * draw.normal(size=len(n)) + shared * draw.normal(size=len(sizes))[size]
    n, d, noise, error = (np.repeat(values, seeds) for values in (n, d, noise, error))
    if off:
        error[draw.integers(len(n))] += off
    return n, d, BESIROGLU.loss(n, d) * np.exp(error + (seeds > 1) * noise / 2 * draw.normal(size=len(n)))
