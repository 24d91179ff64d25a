"""How often `lm report` is wrong, on sweeps drawn from known truths; LM_NIGHTLY=1 draws more, of all kinds.

`python tests/test_report_simulation.py 4000` prints the whole table, which docs/sweeps-and-reports.md quotes.
"""
import math
import os
import sys

import drawn
import numpy as np
import pytest
from drawn import Design

from lm.report import gains, statistics

NIGHTLY = bool(os.environ.get('LM_NIGHTLY'))
SWEEPS = 1000 if NIGHTLY else 150
SEEDS = (3, 5, 10)

EQUAL = {f'{seeds} seeds, {share:.0%} {how}, {curve}': Design((curve,) * 2, seeds=seeds, missing=share, how=how)
         for seeds in SEEDS for share in (0.04, 0.1) for how in ('random', 'worst', 'stopped')
         for curve in ('flat', 'one', 'steep')}
EQUAL |= {f'{seeds} seeds, halving, {curve}': Design((curve,) * 2, seeds=seeds, how='halving')
          for seeds in SEEDS for curve in ('flat', 'one', 'steep')}
EQUAL |= {f'{seeds} seeds, one rate, {share:.0%} {how}': Design(('flat',) * 5, 1, seeds, missing=share, how=how)
          for seeds in SEEDS for share in (0.04, 0.1) for how in ('random', 'worst', 'stopped')}
UNLIKE = {f'{seeds} seeds, {rates} rates, {shared} shared, {base} against {other}': Design(
    (base, other), rates, seeds, shared)
          for seeds in SEEDS for rates in (5, 10, 20) for shared in (0.0, 0.7)
          for base, other in (('steep', 'flat'), ('one', 'flat'), ('half', 'flat'), ('gentle', 'flat'),
                              ('part', 'flat'), ('steep', 'half'), ('steep', 'part'))}
PLAIN = {f'{seeds} seeds, {name}': Design(('flat',) * 5, 1, seeds, **how) for seeds in SEEDS for name, how in {
    'normal': {}, 'independent': {'shared': 0.0}, 'alike': {'shared': 0.9}, 'heavy tails': {'tails': 3.0},
    'unequal': {'scales': (1.0, 1.0, 2.0, 3.0, 0.5)}}.items()}
PLAIN |= {f'{seeds} seeds, steep': Design(('steep',) * 3, 5, seeds) for seeds in SEEDS}


def most(share):
    """Returns a bound that a simulation of that true share exceeds once in 1,000 times."""
    return share + 3.1 * math.sqrt(share * (1 - share) / SWEEPS)


def some(designs, *reduced):
    return list(designs) if NIGHTLY else list(reduced)


@pytest.mark.parametrize('name', some(EQUAL, '5 seeds, 4% random, one', '5 seeds, 10% stopped, one',
                                      '3 seeds, 10% worst, steep', '5 seeds, halving, steep',
                                      '5 seeds, one rate, 10% worst'))
def test_missing_runs_make_no_verdicts(name):
    assert drawn.shares(EQUAL[name], SWEEPS, margin=1.0, edges=False)['differs'] < most(0.05)


def test_an_extra_seed_at_a_bad_rate_changes_nothing():
    generator = np.random.default_rng(0)
    for _ in range(20):
        variants, value = drawn.draw(Design(('steep', 'steep')), generator)
        before = drawn.scores.score(variants[1], value)
        lone = drawn.Run('extra', (9, 9), 'finished', '', {drawn.KEY: 2.0 ** 4}, 37.0)
        after = drawn.scores.score(drawn.Variant('v1', {}, (*variants[1].trials, lone), drawn.KEY), value)
        assert (after.rate, after.losses, after.notes) == (before.rate, before.losses, ())


@pytest.mark.parametrize('name', some(UNLIKE, '5 seeds, 5 rates, 0.7 shared, steep against flat',
                                      '5 seeds, 20 rates, 0.7 shared, one against flat',
                                      '3 seeds, 10 rates, 0.0 shared, half against flat'))
def test_a_variant_flat_in_the_rate_gains_nothing_over_a_steep_one(name):
    shares = drawn.shares(UNLIKE[name], SWEEPS, margin=1.0, edges=False)
    assert max(shares['better'], shares['worse']) < most(0.03)
    assert shares['covered'] > 0.94 - (most(0.05) - 0.05)


@pytest.mark.parametrize('name', some(PLAIN, '5 seeds, normal', '3 seeds, heavy tails', '5 seeds, unequal',
                                      '5 seeds, steep'))
def test_claims_of_equal_variants_and_intervals_hold_their_level(name):
    shares = drawn.shares(PLAIN[name], SWEEPS, margin=1.0, edges=False)
    assert shares['differs'] < most(0.055)
    assert 0.92 < shares['covered'] < 0.985


@pytest.mark.parametrize('rates', [1, 5])
def test_no_difference_is_seldom_wrong(rates):
    design = Design(('steep', 'steep'), rates, 5, 0.7, effects=(0.0, 1.0))
    assert drawn.shares(design, SWEEPS, margin=1.0, edges=False)['wrongly equal'] < most(0.04)
    assert drawn.shares(design, SWEEPS, edges=False)['wrongly equal'] < most(0.04)  # margin: the noise floor, as drawn


@pytest.mark.parametrize('true, seeds', [(true, seeds) for true in (0.5, 1.0, 2.0, 3.0) for seeds in SEEDS]
                         if NIGHTLY else [(2.0, 5), (0.5, 3)])
def test_intervals_of_gains_cover(true, seeds):
    generator, covered, times = np.random.default_rng(0), 0, []
    costs = np.array([0.25, 0.5, 1.0, 2.0, 4.0, true])
    for _ in range(SWEEPS):
        noise = 0.01 * (generator.normal(size=seeds) + generator.normal(size=(len(costs), seeds))) / 2 ** 0.5
        *lengths, losses = (dict(enumerate(row)) for row in 2.5 + 1.5 * costs[:, None] ** -0.4 + noise)
        gain = gains.gain(losses, 1.0, list(zip(costs, lengths, strict=False)))
        covered += gain.interval[0] <= true <= gain.interval[1]
        times.append(gain.times)
    assert np.median(times) == pytest.approx(true, rel=0.02)
    assert 0.92 < covered / SWEEPS < 0.99


@pytest.mark.parametrize('seeds', SEEDS)
def test_normal_losses_are_seldom_outliers(seeds):
    generator = np.random.default_rng(0)
    flagged = [any(marks.any() for marks in statistics.outliers(generator.normal(size=(groups, seeds))))
               for groups in (1, 2, 5) for _ in range(SWEEPS)]
    assert np.mean(flagged) < 0.02


if __name__ == '__main__':
    sweeps = int(sys.argv[1])
    for designs in (EQUAL, UNLIKE, PLAIN):
        for label, design in designs.items():
            result = drawn.shares(design, sweeps, margin=1.0, edges=False)
            print(f'{label:50}', '  '.join(f'{key} {100 * share:.1f}' for key, share in result.items()), flush=True)
