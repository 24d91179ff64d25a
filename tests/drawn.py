"""Sweeps drawn in memory, judged by the code of `lm report`: how often a verdict is false, or a true one is reached."""
import collections
import dataclasses
import math

import numpy as np

from lm.report import comparisons, scores
from lm.report.variants import Variant

KEY = 'optimizer.peak'
Run = collections.namedtuple('Run', 'name seed state why settings loss')
STEP = {'flat': 0.0, 'gentle': 0.25, 'half': 0.5, 'one': 1.0, 'steep': 5.0}  # standard deviations a rate off the best


@dataclasses.dataclass(frozen=True)
class Design:
    """Variants of a sweep, one for each of `curves`: losses have standard deviation 1, of which seeds share a part.

    effects: true losses at the best rate. missing: share of all runs without a loss. how: 'random', 'worst' (the runs
    of highest loss, without a trace), 'stopped' (the same, unfinished) or 'halving' (thirds by early, noisy losses).
    tails: degrees of freedom of Student's t, None for normal. scales: of the variants' noise.
    """

    curves: tuple = ('flat', 'flat')
    rates: int = 5
    seeds: int = 5
    shared: float = 0.5
    effects: tuple = ()
    missing: float = 0.0
    how: str = 'random'
    tails: float | None = None
    scales: tuple = ()


def curve(name, rates):
    """Returns the true losses [R] above the best's; 'part' is flat up to the middle and steep after it."""
    off = np.abs(np.arange(rates) - rates // 2)
    return np.where(np.arange(rates) <= rates // 2, 0.0, 5.0 * off) if name == 'part' else STEP[name] * off


def draw(design, generator):
    """Returns the [Variant] of one sweep, the baseline first, and the function trial -> loss."""
    count, shape = len(design.curves), (len(design.curves), design.rates, design.seeds)
    noise = generator.normal if design.tails is None else lambda size: (
        generator.standard_t(design.tails, size=size) / math.sqrt(design.tails / (design.tails - 2)))
    losses = (math.sqrt(design.shared) * noise(size=shape[2]) + math.sqrt(1 - design.shared) * noise(size=shape))
    losses *= np.array(design.scales or [1.0] * count)[:, None, None]
    losses += np.array([curve(name, design.rates) for name in design.curves])[..., None]
    losses += 30 + np.array(design.effects or [0.0] * count)[:, None, None]
    states = _states(losses, design, generator)
    return [_variant(index, design, losses[index], states[index]) for index in range(count)], lambda run: run.loss


def _states(losses, design, generator):
    states = np.full(losses.shape, 'finished', dtype='<U10')
    gone = round(design.missing * losses.size)
    if design.how == 'halving':
        for rung in 1.0, 0.5:
            left = np.nonzero((states == 'finished').ravel())[0]
            early = losses.ravel()[left] + rung * generator.normal(size=len(left))
            states.ravel()[left[np.argsort(early)[len(left) // 3:]]] = 'stopped'
    elif design.how == 'random':
        states.ravel()[generator.permutation(losses.size)[:gone]] = generator.choice(['absent', 'unfinished', 'failed'])
    elif gone:
        states.ravel()[np.argsort(losses.ravel())[-gone:]] = {'worst': 'absent', 'stopped': 'unfinished'}[design.how]
    return states


def _variant(index, design, losses, states):
    runs = [Run(f'{index}-{rate}-{seed}', (seed, seed), states[rate, seed], 'drawn', {KEY: 2.0 ** rate},
                losses[rate, seed])
            for rate in range(design.rates) for seed in range(design.seeds) if states[rate, seed] != 'absent']
    return Variant('baseline' if not index else f'v{index}', {}, tuple(runs), KEY if design.rates > 1 else '')


def judged(design, generator, margin=None, edges=True):
    """Returns (the margin, [Comparison]) of one sweep. edges: whether a best rate on the edge holds the verdict."""
    variants, value = draw(design, generator)
    drawn = [scores.score(variant, value) for variant in variants]
    if not edges:
        drawn = [score._replace(notes=tuple(note for note in score.notes if ' tried: add' not in note))
                 for score in drawn]
    margin = drawn[0].usual.spread if margin is None else margin
    compared = [comparisons.compare(variant.name, score, drawn[0])
                for variant, score in zip(variants[1:], drawn[1:], strict=True)]
    return margin, comparisons.judge([c for c in compared if c], margin)


def shares(design, sweeps, **how):
    """Returns {verdict: share of sweeps in which some variant has it, 'differs' for better or worse}, and of all
    comparisons the share 'covered' by the interval, 'judged' (not withheld), and 'wrongly equal'.
    """
    generator, counts, rows = np.random.default_rng(0), collections.Counter(), []
    effects = design.effects or (0.0,) * len(design.curves)
    for _ in range(sweeps):
        margin, compared = judged(design, generator, **how)
        verdicts = {c.verdict.partition(' ')[0] for c in compared}
        counts.update(verdicts | ({'differs'} if verdicts & {'better', 'worse'} else set()))
        for c in compared:
            truth = effects[int(c.name[1:])] - effects[0]
            rows.append((c.interval[0] <= truth <= c.interval[1], not c.withheld,
                         abs(truth) >= margin and c.verdict.startswith('no')))
    covered, judged_share, wrong = np.mean(rows, 0) if rows else (1.0, 0.0, 0.0)
    known = {name: counts[name] / sweeps for name in ('better', 'worse', 'no', 'undecided', 'differs')}
    return known | {'covered': float(covered), 'judged': float(judged_share), 'wrongly equal': float(wrong)}
