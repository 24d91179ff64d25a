"""The arithmetic of verdicts, against scipy and statsmodels, and on simulated sweeps."""
import math

import numpy as np
import pytest
from scipy import stats

from lm.report import comparisons, statistics
from lm.report.scores import Score

weightstats = pytest.importorskip('statsmodels.stats.weightstats')
multitest = pytest.importorskip('statsmodels.stats.multitest')
power = pytest.importorskip('statsmodels.stats.power')

SWEEPS = 2000


def drawn(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


def scores(values):
    return Score(dict(enumerate(values)))


def covers(bounds, truth):
    low, high = bounds
    return float(np.mean((low <= truth) & (truth <= high)))


@pytest.mark.parametrize('n', [2, 3, 5, 12])
def test_a_paired_comparison_is_scipys_paired_t_test(n):
    a, b = drawn(n, n), drawn(n + 1, n) + 0.3
    ours, theirs = comparisons.compare('a', scores(a), scores(b)), stats.ttest_rel(a, b)
    assert ours.paired
    assert ours.p_raw == pytest.approx(theirs.pvalue, rel=1e-9)
    assert ours.interval == pytest.approx(tuple(theirs.confidence_interval(0.95)), rel=1e-9)


@pytest.mark.parametrize('n, m', [(2, 2), (5, 5), (4, 9)])
def test_seeds_that_do_not_match_get_welchs_test(n, m):
    a, b = drawn(n, n), 3 * drawn(m, m) + 1
    ours = comparisons.compare('a', scores(a), Score(dict(zip(range(100, 100 + m), b))))
    theirs = stats.ttest_ind(a, b, equal_var=False)
    assert not ours.paired
    assert 'unpaired' in ' '.join(ours.notes)
    assert ours.p_raw == pytest.approx(theirs.pvalue, rel=1e-9)
    assert ours.interval == pytest.approx(tuple(theirs.confidence_interval(0.95)), rel=1e-9)
    assert ours.freedom == pytest.approx(theirs.df)


def test_equivalence_is_statsmodels_tost():
    a, b = drawn(1, 8), drawn(2, 8)
    c = comparisons.compare('a', scores(a), scores(b))
    p, _, _ = weightstats.ttost_paired(a, b, -1.5, 1.5)
    assert float(statistics.p_equivalent(c.difference, c.error, c.freedom, 1.5)) == pytest.approx(p, rel=1e-9)


def test_holm_is_statsmodels_holm():
    for seed in range(20):
        p = np.random.default_rng(seed).uniform(size=7) ** 3
        assert statistics.holm(p) == pytest.approx(multitest.multipletests(p, method='holm')[1], rel=1e-12)


def test_the_effect_of_pairs_is_their_mean_in_standard_deviations():
    a, b = drawn(3, 6) + 1, drawn(4, 6)
    c = comparisons.compare('a', scores(a), scores(b))
    assert c.effect == pytest.approx(np.mean(a - b) / np.std(a - b, ddof=1), rel=1e-12)


def test_the_effect_without_pairs_is_hedges_g():
    a, b = drawn(3, 6) + 1, 2 * drawn(4, 4)
    c = comparisons.compare('a', scores(a), Score(dict(zip(range(100, 104), b, strict=True))))
    pooled = math.sqrt((((a - a.mean()) ** 2).sum() + ((b - b.mean()) ** 2).sum()) / 8)
    assert c.effect == pytest.approx((a.mean() - b.mean()) / pooled * math.gamma(4) / math.gamma(3.5) / 2, rel=1e-12)


@pytest.mark.parametrize('d, alpha', [(0.5, 0.05), (1.0, 0.0125), (2.0, 0.01)])
def test_seeds_needed_are_statsmodels(d, alpha):
    needed = power.TTestPower().solve_power(d, alpha=alpha, power=0.8)
    assert statistics.seeds_to_differ(d, 1.0, alpha) == math.ceil(needed)


def test_the_seeds_for_equality_suffice_and_fewer_do_not():
    n = statistics.seeds_to_equal((0.2, 1.0), 1.0, 0.05)

    def share(n):
        mean, error, freedom = statistics.moments(drawn(n, 4000, n) + 0.2)
        return np.mean(statistics.p_equivalent(mean, error, freedom, 1.0) < 0.05)
    assert share(n) > 0.77
    assert share(n - 3) < 0.8
    assert statistics.seeds_to_equal((1.0, 0.5), 1.0, 0.05) > statistics.MOST


@pytest.mark.parametrize('n', [3, 5, 10])
def test_t_intervals_cover_95_of_100(n):
    found = statistics.moments(drawn(n, SWEEPS, n) + 0.7)
    assert 0.93 <= covers(statistics.interval(*found), 0.7) <= 0.97


@pytest.mark.parametrize('n', [4, 5, 7, 10])
def test_bootstrap_intervals_cover_95_of_100(n):
    assert 0.93 <= covers(statistics.bootstrap(drawn(n, SWEEPS, n) + 0.7), 0.7) <= 0.97


def test_welch_intervals_cover_95_of_100():
    a, b = drawn(1, SWEEPS, 5) + 0.7, 4 * drawn(2, SWEEPS, 8)
    assert 0.93 <= covers(statistics.interval(*statistics.welch(a, b)), 0.7) <= 0.97


def test_bootstrap_of_a_skewed_sample_covers_more_than_t():
    x = np.random.default_rng(0).exponential(size=(SWEEPS, 5))
    assert covers(statistics.bootstrap(x), 1.0) > covers(statistics.interval(*statistics.moments(x)), 1.0) + 0.02


def test_listed_and_drawn_resamples_agree(monkeypatch):
    x = drawn(0, 7)
    exact = statistics.bootstrap(x)
    monkeypatch.setattr(statistics, 'EXACT', 3)
    monkeypatch.setattr(statistics, 'DRAWN', 200_000)
    statistics._resamples.cache_clear()
    sampled = statistics.bootstrap(x)
    statistics._resamples.cache_clear()
    assert sampled == pytest.approx(exact, abs=0.03)


def test_few_seeds_have_no_bootstrap_interval():
    assert np.isnan(statistics.bootstrap(drawn(0, 3))).all()


def family(differences, margin=1.0):
    """Returns the p-values [S m] of two tests, adjusted, of differences [S m n]: of being different, of being equal."""
    found = statistics.moments(differences)
    return statistics.holm(statistics.p_two_sided(*found)), statistics.holm(statistics.p_equivalent(*found, margin))


def test_false_claims_stay_under_five_in_a_hundred_sweeps():
    shared = drawn(0, SWEEPS, 1, 5)
    p, _ = family(drawn(1, SWEEPS, 8, 5) - shared)
    assert np.mean((p < comparisons.ALPHA).any(-1)) < 0.06
    uncorrected = statistics.p_two_sided(*statistics.moments(drawn(1, SWEEPS, 8, 5) - shared))
    assert np.mean((uncorrected < comparisons.ALPHA).any(-1)) > 0.15


def test_false_claims_of_equality_stay_under_five_in_a_hundred_sweeps():
    _, p = family(drawn(2, SWEEPS, 4, 6) + 1.0)
    assert np.mean((p < comparisons.ALPHA).any(-1)) < 0.06


def test_judging_is_what_was_simulated():
    values, base = drawn(5, 3, 5) + [[0.0], [4.0], [-4.0]], drawn(6, 5)
    compared = [comparisons.compare(str(i), scores(row), scores(base)) for i, row in enumerate(values)]
    p, equal = family(values - base, 0.9)
    judged = comparisons.judge(compared, 0.9)
    assert [c.p for c in judged] == pytest.approx(p.tolist())
    assert [c.p_equivalent for c in judged] == pytest.approx(equal.tolist())
    assert [c.verdict for c in judged][1:] == ['worse', 'better']


def test_a_best_rate_by_its_mean_makes_no_more_false_claims():
    """Two equal variants, each at the best of five rates: flat curves, then steep ones."""
    for curve in ([0, 0, 0, 0, 0], [4, 2, 0, 2, 4]):
        chosen = []
        for seed in (0, 1):
            x = drawn(seed, SWEEPS, 5, 5) + np.array(curve)[:, None]
            chosen.append(x[np.arange(SWEEPS), x.mean(-1).argmin(-1)])
        assert np.mean(statistics.p_two_sided(*statistics.moments(chosen[0] - chosen[1])) < 0.05) < 0.06


@pytest.mark.long
def test_a_second_look_after_adding_seeds_makes_as_many_false_claims_as_is_said():
    x, claimed = drawn(3, SWEEPS, 60), 0
    for row in x:
        seeds = 5
        for _ in range(2):
            c = comparisons.judge([comparisons.compare('a', scores(row[:seeds]), scores(np.zeros(seeds)))], 1.0)[0]
            seeds = min(seeds + (c.seeds_needed or 0), 60)
            if c.verdict != comparisons.UNDECIDED:
                break
        claimed += c.verdict in (comparisons.BETTER, comparisons.WORSE)
    assert 0.05 < claimed / SWEEPS < 0.1


def test_the_least_p_is_no_zero():
    mean, error, freedom = 40.0, 1.0, 20.0
    assert statistics.p_two_sided(mean, error, freedom) == pytest.approx(2 * stats.t.sf(40, 20), rel=1e-9)


def test_the_seeds_said_to_be_missing_would_have_settled_it():
    """Where the true difference is what was seen, adding them finds it in about 80 of 100 sweeps."""
    mean, spread, n = 0.8, 1.0, 5
    c = comparisons.Comparison('b', n, True, False, 0, 0, mean, spread / n ** 0.5, n - 1, (0, 0), (0, 0), 0, 0.1)
    more = comparisons.judge([c], 0.1)[0].seeds_needed
    found = statistics.moments(drawn(7, SWEEPS, n + more) + mean)
    assert 0.77 < np.mean(statistics.p_two_sided(*found) < 0.05) < 0.9


def test_equal_runs_are_equal_and_constant_differences_are_found():
    same = comparisons.judge([comparisons.compare('a', scores([1., 2, 3]), scores([1., 2, 3]))], 0.1)[0]
    assert same.verdict == 'no difference larger than 0.1'
    less = comparisons.judge([comparisons.compare('a', scores([1., 2, 3]), scores([2., 3, 4]))], 0.1)[0]
    assert less.verdict == 'better'
