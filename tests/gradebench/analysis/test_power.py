"""The power of the paired test: against oracles and closed forms, and against simulated comparisons."""

import math

import numpy as np
import pytest
import scipy.stats
from statsmodels.stats.power import TTestPower

from gradebench.analysis import power, statistics


@pytest.mark.parametrize(("n", "effect", "level"), [(20, 0.8, 0.05), (60, 0.4, 0.05), (1000, 0.1, 0.05 / 253)])
def test_power_is_that_of_the_t_test_where_p_has_many_steps(n, effect, level):
    """The oracle counts the wrong side too, below 1e-4 here."""
    assert power.power_of(n, effect, level) == pytest.approx(TTestPower().power(effect, n, level), abs=0.01)


@pytest.mark.parametrize(("n", "family"), [(6, 1), (10, 22), (14, 253)])
def test_power_where_only_one_sign_for_all_is_enough(n, family):
    """2 / 2^n fits under the level, 4 / 2^n doesn't: all differences have one sign with the chance Phi(effect)^n."""
    assert 2 * statistics.smallest_attainable_p(n) >= statistics.ALPHA / family
    for effect in (1.0, 1.6, 2.1):
        expected = scipy.stats.norm.cdf(effect) ** n
        assert power.power_of(n, effect, statistics.ALPHA / family) == pytest.approx(expected)


@pytest.mark.parametrize(("n", "family"), [(14, 22), (16, 253), (20, 253), (23, 253)])
def test_power_is_that_of_simulated_sign_flip_tests(n, family):
    """400 normal comparisons each: 0.8 within four standard errors, 0.72 to 0.88; the t test's alone has 0.71 at
    (16, 253) of what it promises as 0.8."""
    effect, rng = power.detectable_at(n, family), np.random.default_rng(1)
    p = [statistics.paired_permutation_p(rng.normal(effect, 1.0, n)) for _ in range(400)]
    assert 0.72 < np.mean(np.array(p) < statistics.ALPHA / family) < 0.88


def test_too_few_seeds_have_no_power_at_all():
    assert power.power_of(5, 100.0, 0.05) == 0.0  # p is 1/16 at least
    assert power.power_of(6, 100.0, 0.05) == pytest.approx(1.0)


@pytest.mark.parametrize(("effect", "family"), [(0.5, 1), (1.0, 6), (1.5, 253), (0.02, 1)])
def test_seeds_are_the_fewest_with_that_power(effect, family):
    seeds = power.seeds_for(effect, family)
    level = statistics.ALPHA / family
    assert power.power_of(seeds, effect, level) >= power.POWER
    assert power.power_of(seeds - 1, effect, level) < power.POWER


def test_the_test_itself_needs_some_seeds_however_large_the_difference():
    assert power.seeds_for(1000.0, 253) == statistics.seeds_needed(253) == 14
    assert power.seeds_for(1e-6, 253) == math.inf
    assert power.detectable_at(13, 253) == math.inf
    assert power.detectable_at(14, 253) == pytest.approx(scipy.stats.norm.ppf(power.POWER ** (1 / 14)))


def test_what_is_detectable_has_the_power_promised():
    effect = power.detectable_at(20, 10)
    assert power.power_of(20, effect, statistics.ALPHA / 10) == pytest.approx(power.POWER, abs=1e-6)


@pytest.mark.parametrize("effect", [0.9, 0.6])
def test_sign_flip_tests_with_the_seeds_needed_reach_the_power(effect):
    """300 simulated comparisons with normal differences: 0.8 within 4 standard errors, 0.7 to 0.9."""
    seeds = power.seeds_for(effect, 3)
    rng = np.random.default_rng(0)
    p = [statistics.paired_permutation_p(rng.normal(effect, 1.0, seeds), rng, 4000) for _ in range(300)]
    assert 0.7 < np.mean(np.array(p) < statistics.ALPHA / 3) < 0.9
