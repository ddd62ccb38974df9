"""The test over instances: against scipy's, by hand, and how often it is wrong where seeds are many and instances few."""

import math

import numpy as np
import pytest
import scipy.stats

from gradebench.analysis import nested


def drawn(rng, instances, seeds, between, within=1.0, mean=0.0):
    """Differences of the pairs of each instance: normal, with these deviations."""
    return [mean + between * rng.normal() + within * rng.normal(size=seeds) for _ in range(instances)]


def test_p_and_interval_are_students_over_the_means_of_the_instances():
    differences = drawn(np.random.default_rng(0), 5, 4, 1.0, mean=0.5)
    found = nested.compare(differences)
    expected = scipy.stats.ttest_1samp([values.mean() for values in differences], 0.0)
    assert found.p_value == pytest.approx(expected.pvalue, rel=1e-12)
    assert (found.ci_low, found.ci_high) == pytest.approx(tuple(expected.confidence_interval()), rel=1e-12)
    assert (found.n_instances, found.n_pairs) == (5, 20)


def test_the_spreads_between_and_within_are_those_of_the_one_way_random_model():
    differences = [[1.0, 3.0], [5.0, 7.0], [9.0, 11.0]]  # means 2, 6, 10; variance 16 between them, 2 within
    found = nested.compare(differences)
    assert found.sd_within == pytest.approx(math.sqrt(2))
    assert found.sd_between == pytest.approx(math.sqrt(16 - 2 / 2))
    assert found.mean_difference == 6 and found.n_a_higher == 3


def test_noise_alone_shows_no_spread_between_instances():
    assert nested.compare([[-1.0, 1.0], [-2.0, 2.0], [-3.0, 3.0]]).sd_between == 0


def test_each_instance_counts_alike_however_many_seeds_it_has():
    assert nested.compare([[1.0] * 9, [3.0], [5.0, 5.0]]).mean_difference == 3


def test_two_instances_have_a_mean_and_no_test():
    found = nested.compare([[1.0, 2.0], [3.0, 4.0]])
    assert found.mean_difference == 2.5 and math.isnan(found.p_value) and math.isnan(found.ci_low)


def test_values_that_are_not_finite_and_instances_without_a_pair_are_dropped():
    found = nested.compare([[1.0, math.nan], [2.0], [3.0], [math.inf], []])
    assert (found.n_instances, found.n_pairs) == (3, 3)


def test_estimators_with_equal_draws_are_not_different():
    assert nested.compare([[0.0, 0.0]] * 4).p_value == 1


@pytest.mark.parametrize(("instances", "between"), [(3, 0.5), (8, 2.0)])
def test_equal_estimators_are_told_apart_at_the_level(instances, between):
    """Level 5 %; over 1,000 draws a rate outside 2.5 to 7.5 % has a probability below 1e-3."""
    rng = np.random.default_rng(7)
    alarms = [nested.compare(drawn(rng, instances, 4, between)).p_value < 0.05 for _ in range(1000)]
    assert 0.025 < np.mean(alarms) < 0.075


def test_seeds_that_agree_within_few_instances_are_no_evidence_about_the_kind_of_task():
    """All 7 seeds of 3 instances as one sample of 21 would raise a false alarm in a third of the draws."""
    rng = np.random.default_rng(3)
    draws = [drawn(rng, 3, 7, 2.0) for _ in range(200)]
    as_one = [scipy.stats.ttest_1samp(np.concatenate(one), 0.0).pvalue < 0.05 for one in draws]
    assert np.mean(as_one) > 0.3
    assert np.mean([nested.compare(one).p_value < 0.05 for one in draws]) < 0.12


def test_a_difference_of_two_deviations_is_seen_by_eight_instances():
    """Power 0.99 by the noncentral t; below 0.95 in 200 draws has a probability below 1e-4."""
    rng = np.random.default_rng(5)
    seen = [nested.compare(drawn(rng, 8, 4, 0.8, 1.2, mean=2.0)).p_value < 0.05 for _ in range(200)]
    assert np.mean(seen) > 0.95
