"""The test of means keeps its level, has its power, and heeds directions without noise."""

import numpy as np
import pytest

from gradebench.checks.hotelling import MOST, POWER, mean_test

TRUTH = np.array([1.0, 1.0, 0.0, 0.0, 0.0])
SCALE = float(np.linalg.norm(TRUTH))


def draws_around(mean, seed, spread=1.0, rank=3):
    """Draws with noise in the first `rank` axes only."""
    rng = np.random.default_rng(seed)

    def draw(count):
        noise = rng.standard_normal((count, len(mean))) * spread
        noise[:, rank:] = 0
        return mean + noise

    return draw


def test_level_is_kept():
    """At level 0.05, 200 true means give 10 +- 3.1 alarms: 1 to 22 hold 0.9997 of the binomial."""
    alarms = sum(mean_test(draws_around(TRUTH, i), TRUTH, SCALE, 0.05, 0.5).p_value < 0.05 * 0.9 for i in range(200))
    assert 1 <= alarms <= 22


def test_power_is_what_it_says():
    """A deviation of the margin, whatever its direction, is seen with POWER: P(more than 2 of 100 missed) < 2e-4."""
    rng = np.random.default_rng(0)
    missed = 0
    for i in range(100):
        direction = np.append(rng.standard_normal(3), [0, 0])
        moved = TRUTH + 0.3 * SCALE * direction / np.linalg.norm(direction)
        found = mean_test(draws_around(moved, i), TRUTH, SCALE, 1e-3, 0.3)
        missed += found.p_value >= 1e-3
    assert POWER == 0.999
    assert missed <= 2


def test_a_deviation_where_there_is_no_noise_is_seen_however_small():
    moved = TRUTH + np.array([0, 0, 0, 0, 1e-4])
    assert mean_test(draws_around(moved, 0), TRUTH, SCALE, 1e-3, 0.3).p_value == 0.0


def test_a_mean_without_noise_passes_where_it_is_right():
    found = mean_test(draws_around(TRUTH, 0, spread=0.0), TRUTH, SCALE, 1e-3, 0.3)
    assert found.p_value == 1.0 and found.power == 1.0 and found.largest < 1e-12


def test_share_is_the_deviation_along_the_truth():
    """Scaled by 1.3: the interval at level 1e-3 misses 0.3 with that probability."""
    found = mean_test(draws_around(1.3 * TRUTH, 3, spread=0.1), TRUTH, SCALE, 1e-3, 0.1)
    assert abs(found.share - 0.3) < found.error < 0.1


def test_noise_is_answered_with_more_draws_up_to_a_limit():
    quiet, loud, hopeless = (
        mean_test(draws_around(TRUTH, 0, spread), TRUTH, SCALE, 1e-3, 0.3) for spread in (0.1, 1.0, 100.0)
    )
    assert quiet.draws < loud.draws < hopeless.draws == MOST
    assert loud.power > 0.99 > hopeless.power
    assert hopeless.largest > 1


@pytest.mark.parametrize("size", [1, 2, 3])
def test_few_dimensions_are_no_obstacle(size):
    truth = np.ones(size)
    assert mean_test(draws_around(truth, 5, 0.1), truth, 1.0, 1e-3, 0.3).p_value > 1e-3
    assert mean_test(draws_around(2 * truth, 5, 0.1), truth, 1.0, 1e-3, 0.3).p_value < 1e-3
