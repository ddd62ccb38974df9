"""Crossings: analytic ones exactly, and how often intervals and leads are wrong on simulated curves."""

import numpy as np
import pytest
import scipy.stats

from gradebench.analysis import crossings

BUDGETS = np.geomspace(5, 640, 57)
HALF = float(np.exp(np.log([5, 640]).mean()))  # 56.6: the middle in log budget


def rng(stream=0):
    return np.random.default_rng(stream)


def crossed(differences, budgets=BUDGETS):
    return crossings.crossing(budgets, differences, crossings.supported_leads(differences, rng()))


def lines(slope, seeds=10, spread=0.01):
    """Differences linear in log budget, 0 in the middle, seeds offset by symmetric shifts."""
    share = np.log(BUDGETS / HALF) / np.log(640 / HALF)
    return slope * share + spread * np.linspace(-1, 1, seeds)[:, None]


# --- exact


def test_a_line_in_log_budget_crosses_where_it_does():
    found = crossed(lines(-1.0))
    assert found.budget == pytest.approx(HALF, rel=1e-9)
    assert found.low < HALF < found.high and found.supported
    assert (found.before, found.after, found.sign_changes) == (1, -1, 1)
    turned = crossed(lines(1.0))
    assert (turned.budget, turned.before, turned.after) == (pytest.approx(found.budget), -1, 1)


def test_more_spread_gives_a_wider_interval_and_then_an_open_one():
    widths = [crossed(lines(-1.0, spread=spread)) for spread in (0.01, 0.3, 0.8)]
    assert all(np.diff([one.high / one.low for one in widths]) > 0)
    lost = crossed(lines(-1.0, spread=5.0))
    assert np.isnan([lost.low, lost.high]).all() and not lost.supported and lost.budget == pytest.approx(HALF)


def test_a_lead_that_never_changes_has_no_crossing():
    found = crossed(0.5 + lines(0.0))
    assert np.isnan(found.budget) and (found.before, found.after, found.sign_changes) == (1, 1, 0)


def test_of_several_changes_it_is_the_last_supported_one_with_their_count():
    wave = np.cos(np.linspace(0, 3 * np.pi, 57)) + 0.01 * np.linspace(-1, 1, 10)[:, None]
    found = crossed(wave)
    place = np.log(found.budget / 5) / np.log(128)
    assert (
        found.sign_changes == 3 and place == pytest.approx(5 / 6, abs=0.01) and (found.before, found.after) == (1, -1)
    )


def test_a_dip_between_two_leads_of_the_same_one_is_no_change():
    mean = np.ones(57)
    mean[28] = -1e-6
    found = crossings.crossing(BUDGETS, mean[None], np.where(mean > 0, 1, 0))
    assert np.isnan(found.budget) and found.sign_changes == 2 and (found.before, found.after) == (1, 1)


def test_a_supported_change_goes_before_a_later_one_that_is_open():
    leads = np.array([1, 1, 0, 0, -1, -1, 0, 0])
    mean = np.array([1.0, 1, 1, -1, -1, -1, -1, 1])
    found = crossings.crossing(2.0 ** np.arange(8), mean[None], leads)
    assert found.budget == pytest.approx(2**2.5) and (found.low, found.high) == (2.0, 16.0)


def test_differences_of_zero_belong_to_neither():
    found = crossed(np.zeros((10, 57)))
    assert np.isnan(found.budget) and (found.before, found.after, found.sign_changes) == (0, 0, 0)
    touching = np.array([[1.0, 0.0, 0.0, -1.0]])
    across = crossings.crossing([1, 2, 4, 8], touching, [0, 0, 0, 0])
    assert across.sign_changes == 1 and across.budget == pytest.approx(8**0.5)


# --- the test


def test_one_budget_gives_the_sign_flip_test_of_one_mean():
    differences = rng(3).normal(0.4, 1, 9)
    by_hand = scipy.stats.permutation_test(
        (differences,), np.mean, permutation_type="samples", n_resamples=np.inf, vectorized=True
    )
    assert crossings.simultaneous_p(differences[:, None], rng())[0] == pytest.approx(by_hand.pvalue)


def test_budgets_that_are_the_same_cost_nothing_and_others_do():
    differences = rng(4).normal(0.6, 1, (10, 1))
    alone = crossings.simultaneous_p(differences, rng())[0]
    assert (crossings.simultaneous_p(np.repeat(differences, 5, 1), rng()) == alone).all()
    noise = rng(5).normal(0, 1, (10, 20))
    assert crossings.simultaneous_p(np.hstack([differences, noise]), rng())[0] > alone


def test_neither_the_order_of_seeds_nor_of_budgets_matters():
    differences = rng(6).normal(0.3, 1, (10, 7))
    p, seeds, budgets = crossings.simultaneous_p(differences, rng()), rng(7).permutation(10), rng(8).permutation(7)
    assert crossings.simultaneous_p(differences[seeds][:, budgets], rng()) == pytest.approx(p[budgets])


def test_many_seeds_are_tested_by_random_signs():
    strong = rng(9).normal(2, 1, (20, 3))
    assert crossings.simultaneous_p(strong, rng()) == pytest.approx(1 / 10_001)


def test_five_seeds_support_nothing_and_none_say_nothing():
    assert not crossings.supported_leads(np.ones((5, 3)), rng()).any()
    assert crossings.supported_leads(np.ones((6, 3)), rng()).all()
    assert np.isnan(crossings.simultaneous_p(np.empty((0, 3)), rng())).all()
    assert not crossings.supported_leads(np.empty((0, 3)), rng()).any()


@pytest.mark.parametrize("values", [[1.0, 2.0], [[1.0, np.nan]]])
def test_what_is_no_table_of_finite_differences_is_refused(values):
    with pytest.raises(ValueError, match="finite"):
        crossings.simultaneous_p(values, rng())


# --- how often it is wrong: 400 draws of 10 seeds whose curves wander by themselves


def simulated(mean, draws=400, seeds=10):
    """Each draw (seeds, 33): `mean` along log budget from 0 to 1, with offsets, slopes and wander of each seed."""
    generator, x = rng(11), np.linspace(0, 1, 33)
    for _ in range(draws):
        wander = np.array([np.interp(x, np.linspace(0, 1, 8), w) for w in generator.normal(0, 0.15, (seeds, 8))])
        offset, slope = generator.normal(0, 0.25, (2, seeds, 1))
        yield mean(x) + wander + offset + slope * (x - 0.5)


def test_equal_estimators_get_a_lead_at_any_budget_in_at_most_5_percent():
    wrong = sum(bool(crossings.supported_leads(one, rng()).any()) for one in simulated(np.zeros_like))
    assert scipy.stats.binomtest(wrong, 400, 0.05, "greater").pvalue > 0.01  # alpha 0.01; 10 % are seen with power 0.96


def test_the_interval_of_a_crossing_holds_it_and_most_are_found():
    budgets, held, found = 10.0 ** np.linspace(0, 2, 33), 0, 0
    for one in simulated(lambda x: 0.5 - x):
        leads = crossings.supported_leads(one, rng())
        crossed_at = crossings.crossing(budgets, one, leads)
        within = not crossed_at.low > 10.0 and not crossed_at.high < 10.0  # an open end holds whatever is there
        held += within and leads[16] == 0  # without any crossing there is no lead at the true one
        found += crossed_at.supported
    assert scipy.stats.binomtest(held, 400, 0.95, "less").pvalue > 0.01 and found > 300
