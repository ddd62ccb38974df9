"""Streaming moments against their definitions, draws in one pass against draws one by one, and the probe's metrics on
simulated gradients whose truth is known: their intervals cover it.

Long because one file tests one module.
"""

import itertools
import math
from collections import defaultdict

import numpy as np
import pytest
import scipy.stats
import torch
from safetensors.torch import load, save

from gradebench.core.estimator import Estimate, Estimator, score
from gradebench.core.sampling import generator
from gradebench.measurement import gradient_metrics as measures
from gradebench.measurement import probes
from gradebench.measurement.gradient_metrics import (
    Interval,
    gradient_metrics,
    group_of,
    slope_of_log_variance,
    summaries,
)
from gradebench.measurement.moments import BLOCKS, Moments, Reference, flatten
from gradebench.measurement.probes import Source, costs_of, entries_at_once, moments_of, one_estimate
from gradebench.plugins import registry

ALPHA = 1e-3  # false alarms of each statistical test, unless it states another rate


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=generator("cpu", seed), dtype=torch.float64)


def streamed(vectors, twins=None, centre=None, sizes=None, parts=1):
    """Moments of the vectors (D, d), added in so many parts."""
    size = vectors.shape[1]
    centre = torch.zeros(size, dtype=torch.float64) if centre is None else centre
    moments = Moments(centre, sizes or [size], min(BLOCKS, len(vectors)))
    for index in torch.arange(len(vectors)).tensor_split(parts):
        moments.add(vectors[index], None if twins is None else twins[index])
    return moments


def measured(moments, reference, names=None, group=""):
    names = names or [str(i) for i in range(len(moments.sizes))]
    return gradient_metrics(summaries(moments, reference, names)[group])


def values_alone(moments, reference):
    """The values of `measured`, without the time that their intervals take, unclipped where one would be."""
    summary = summaries(moments, reference, ["0"])[""]
    return measures._metrics(summary, np.ones(len(summary.counts)), np.ones(len(summary.reference_counts)))


def values_of(metrics):
    return {name: interval.value for name, interval in metrics.items()}


# --- moments ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_moments_equal_those_of_the_stacked_vectors(offset):
    vectors = normal(47, 7) + offset
    truth = torch.full((7,), offset + 0.5, dtype=torch.float64)
    moments = streamed(vectors, centre=truth)
    mean, variance = vectors.mean(0), float(vectors.var(0).sum())
    torch.testing.assert_close(moments.mean, mean)
    assert moments.count == 47
    found = values_of(measured(moments, Reference.known(truth, [7])))
    assert found["gradient_variance"] == pytest.approx(variance, rel=1e-9)
    assert found["gradient_bias_squared"] == pytest.approx(float((mean - truth).square().sum()) - variance / 47)
    assert found["gradient_norm_squared"] == pytest.approx(float(mean.square().sum()) - variance / 47)
    assert found["gradient_reference_dot"] == pytest.approx(float(mean @ truth))
    assert found["gradient_reference_norm_squared"] == pytest.approx(float(truth.square().sum()))
    assert found["gradient_mse"] == pytest.approx(found["gradient_variance"] + found["gradient_bias_squared"])
    assert "gradient_variance_sampling" not in found and "gradient_variance_prompts" not in found


def test_moments_of_pairs_part_the_variance_into_sampling_and_prompts():
    shared = normal(33, 5, seed=1)
    first, second = (2 + shared + normal(33, 5, seed=seed) for seed in (2, 3))
    truth = torch.full((5,), 1.5, dtype=torch.float64)
    found = values_of(measured(streamed(first, second, truth), Reference.known(truth, [5])))
    units = (first + second) / 2
    sampling = float((first - second).square().sum(1).mean() / 2)  # two draws of the same prompts: their variance
    assert found["gradient_variance_sampling"] == pytest.approx(sampling)
    assert found["gradient_variance_prompts"] == pytest.approx(float(units.var(0).sum()) - sampling / 2)
    assert found["gradient_variance"] == pytest.approx(sampling + found["gradient_variance_prompts"])
    bias_squared = float((units.mean(0) - truth).square().sum() - units.var(0).sum() / 33)
    assert found["gradient_bias_squared"] == pytest.approx(bias_squared)


def squared_dot(draws, long_run):
    """(E g . grad J)^2: over all pairs of blocks, dealt out in turn, of draws (20 blocks) and of reference (8)."""
    dots = draws.unflatten(0, (-1, 20)).mean(0) @ long_run.unflatten(0, (-1, 8)).mean(0).T
    pairs = [
        dots[i, j] * dots[a, b]
        for i, a in itertools.permutations(range(20), 2)
        for j, b in itertools.permutations(range(8), 2)
    ]
    return float(torch.stack(pairs).mean())


def test_metrics_equal_their_definitions_with_a_noisy_reference():
    draws, long_run = normal(40, 4, seed=1) + 1, 0.2 * normal(16, 4, seed=2) + 1
    run = Moments(torch.zeros(4, dtype=torch.float64), [4], 8)
    run.add(long_run)
    reference = Reference(run.recentred(), exact=False)
    found = values_of(measured(streamed(draws, centre=reference.moments.centre), reference))
    noise, error = float(draws.var(0).sum()) / 40, float(long_run.var(0).sum()) / 16
    norm, truth = float(draws.mean(0).square().sum()) - noise, float(long_run.mean(0).square().sum()) - error
    bias = float((draws.mean(0) - long_run.mean(0)).square().sum()) - noise - error
    dot = float(draws.mean(0) @ long_run.mean(0))
    expected = {
        "gradient_variance": 40 * noise,
        "gradient_variance_relative": 40 * noise / truth,
        "gradient_variance_relative_own": 40 * noise / norm,
        "gradient_snr": truth / (40 * noise),
        "gradient_cosine": dot / math.sqrt(norm * truth),
        "gradient_bias_squared": bias,
        "gradient_bias_relative": bias / truth,
        "gradient_mse": 40 * noise + bias,
        "gradient_mse_relative": (40 * noise + bias) / truth,
        "gradient_direction_error": 1 - squared_dot(draws, long_run) / (norm + 40 * noise) / truth,
        "gradient_norm_squared": norm,
        "gradient_reference_dot": dot,
        "gradient_reference_norm_squared": truth,
    }
    assert found == {name: pytest.approx(min(1.0, value)) if "cosine" in name else pytest.approx(value)
                     for name, value in expected.items()}  # fmt: skip


@pytest.mark.parametrize("parts", [2, 7, 45])
def test_vectors_may_come_in_any_parts(parts):
    first, second = normal(45, 6, seed=1), normal(45, 6, seed=2)
    whole, pieces = (streamed(first, second, sizes=[2, 4], parts=count) for count in (1, parts))
    for name in ("sums", "counts", "squares", "halves"):
        torch.testing.assert_close(getattr(pieces, name), getattr(whole, name))


def test_values_do_not_depend_on_the_order_of_the_draws():
    first, second = normal(45, 6, seed=1) + 1, normal(45, 6, seed=2) + 1
    order = torch.randperm(45, generator=generator("cpu", 3))
    reference = Reference.known(torch.ones(6, dtype=torch.float64), [6])
    centre = reference.moments.centre
    one, other = (
        values_of(measured(streamed(first[i], second[i], centre), reference)) for i in (torch.arange(45), order)
    )
    for found in (one, other):  # from blocks, which an order deals the draws out to
        del found["gradient_direction_error"]
    assert one == pytest.approx(other)


def test_what_moments_hold_does_not_grow_with_the_draws():
    def held(draws):
        moments = streamed(normal(draws, 9), normal(draws, 9, seed=1), sizes=[4, 5])
        return {name: value.numel() for name, value in vars(moments).items() if isinstance(value, torch.Tensor)}

    few, many = held(BLOCKS), held(50 * BLOCKS)
    assert few == many
    assert sum(many.values()) < (BLOCKS + 4) * (9 + 2 * 2)


def test_moments_leave_their_input_alone():
    first, second = normal(3, 2), normal(3, 2, seed=1)
    before = first.clone(), second.clone()
    streamed(first, second)
    assert torch.equal(first, before[0]) and torch.equal(second, before[1])


def test_no_vector_has_no_mean_and_one_no_variance():
    with pytest.raises(ValueError, match="no vector"):
        _ = Moments(torch.zeros(2), [2]).mean
    truth = torch.ones(3, dtype=torch.float64)
    found = measured(streamed(normal(1, 3), centre=truth), Reference.known(truth, [3]))
    assert all(math.isnan(v) for v in (found["gradient_variance"].value, found["gradient_variance"].low))


def test_recentring_changes_nothing_but_the_centre():
    first, second = normal(45, 6, seed=1) + 3, normal(45, 6, seed=2) + 3
    moved = streamed(first, second, sizes=[2, 4]).recentred()
    fresh = streamed(first, second, centre=moved.centre, sizes=[2, 4])
    torch.testing.assert_close(moved.centre, torch.cat([first, second]).mean(0))
    for name in ("mean", "sums", "counts", "squares", "halves"):
        torch.testing.assert_close(getattr(moved, name), getattr(fresh, name))
    assert moved.paired and moved.sizes == [2, 4]


def test_a_centre_near_the_mean_saves_a_small_variance():
    """1e8 times smaller than the mean: squares taken from zero would lose it among their rounding errors."""
    vectors = 1e8 + normal(40, 3)
    centre = torch.full((3,), 1e8, dtype=torch.float64)
    found = values_of(measured(streamed(vectors, centre=centre), Reference.known(centre, [3])))
    assert found["gradient_variance"] == pytest.approx(float((vectors - centre).var(0).sum()), rel=1e-9)


def test_flatten_is_one_float64_vector_without_a_graph():
    flat = flatten([torch.ones(2, 2, requires_grad=True) * 2, torch.zeros((), dtype=torch.float16)])
    assert flat.tolist() == [2, 2, 2, 2, 0]
    assert flat.dtype == torch.float64
    assert not flat.requires_grad


# --- reference and groups ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("exact", [True, False])
def test_a_reference_comes_back_from_a_file_as_it_was(exact):
    sizes = [2, 3]
    run = streamed(normal(16, 5, seed=1), sizes=sizes).recentred()
    reference = Reference.known(normal(5), sizes) if exact else Reference(run, exact=False)
    stored = load(save(reference.tensors()))
    back = Reference.of_tensors(stored, sizes)
    assert back.exact is exact
    draws = streamed(normal(30, 5, seed=2), normal(30, 5, seed=3), reference.moments.centre, sizes)
    assert measured(draws, back) == measured(draws, reference)


def test_a_known_reference_adds_no_noise():
    truth = normal(5)
    found = measured(streamed(normal(40, 5) + 1, centre=truth), Reference.known(truth, [5]))
    norm_squared = found["gradient_reference_norm_squared"]
    for end in (norm_squared.low, norm_squared.value, norm_squared.high):
        assert end == pytest.approx(float(truth @ truth), rel=1e-12)


def test_a_reference_of_zero_leaves_what_is_relative_to_it_open():
    """As for parameters that the objective doesn't read, which are a group of their own."""
    nothing = torch.zeros(3, dtype=torch.float64)
    found = measured(streamed(normal(40, 3), normal(40, 3, seed=1)), Reference.known(nothing, [3]))
    assert found["gradient_variance"].low < 3 < 1.5 * found["gradient_variance"].high
    assert found["gradient_bias_squared"].low <= 0 <= found["gradient_bias_squared"].high
    assert math.isnan(found["gradient_bias_relative"].value) and math.isnan(found["gradient_cosine"].value)


def test_draws_and_reference_of_different_centres_are_refused():
    with pytest.raises(ValueError, match="same centre"):
        summaries(streamed(normal(4, 3)), Reference.known(normal(3), [3]), ["a"])


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("blocks.0.query.weight", "blocks.0"),
        ("blocks.11.mlp.0.bias", "blocks.11"),
        ("norm.bias", "norm"),
        ("token", "token"),
        ("0", "0"),
        ("policy.head.weight", "policy.head"),
    ],
)
def test_a_parameter_belongs_to_its_numbered_block_or_its_module(name, group):
    assert group_of(name) == group


def test_groups_of_parameters_add_up_to_all_of_them():
    names, sizes = ["token", "blocks.0.query", "blocks.0.key", "norm.weight", "norm.bias"], [4, 3, 2, 1, 1]
    truth = normal(11)
    first, second = (2 + normal(40, 11, seed=seed) for seed in (1, 2))
    moments = streamed(first, second, truth, sizes)
    found = summaries(moments, Reference.known(truth, sizes), names)
    assert list(found) == ["", "token", "blocks.0", "norm"]
    by_group = {group: values_of(gradient_metrics(summary)) for group, summary in found.items()}
    total = by_group.pop("")
    parts = ("variance", "variance_sampling", "variance_prompts", "bias_squared", "mse", "norm_squared")
    for metric in (f"gradient_{part}" for part in (*parts, "reference_dot", "reference_norm_squared")):
        assert sum(one[metric] for one in by_group.values()) == pytest.approx(total[metric]), metric
    alone = streamed(first[:, 4:9], second[:, 4:9], truth[4:9])
    assert by_group["blocks.0"] == pytest.approx(values_of(measured(alone, Reference.known(truth[4:9], [5]))))


# --- metrics ----------------------------------------------------------------------------------------------------


def test_metrics_of_estimates_without_noise_are_the_plain_geometry():
    truth, estimate = torch.tensor([3.0, 4.0]).double(), torch.tensor([4.0, 3.0]).double()
    same = estimate.expand(30, 2)
    found = values_of(measured(streamed(same, same, truth), Reference.known(truth, [2])))
    assert found == {
        "gradient_variance": 0.0,
        "gradient_variance_sampling": 0.0,
        "gradient_variance_prompts": 0.0,
        "gradient_variance_relative": 0.0,
        "gradient_variance_relative_own": 0.0,
        "gradient_snr": pytest.approx(float("nan"), nan_ok=True),
        "gradient_cosine": pytest.approx(24 / 25),
        "gradient_bias_squared": pytest.approx(2.0),
        "gradient_bias_relative": pytest.approx(2 / 25),
        "gradient_mse": pytest.approx(2.0),
        "gradient_mse_relative": pytest.approx(2 / 25),
        "gradient_direction_error": pytest.approx(1 - (24 / 25) ** 2),
        "gradient_norm_squared": pytest.approx(25.0),
        "gradient_reference_dot": pytest.approx(24.0),
        "gradient_reference_norm_squared": pytest.approx(25.0),
    }


def test_ratios_are_nan_where_the_signal_is_below_the_noise():
    truth = torch.ones(1, dtype=torch.float64)
    draws = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    found = measured(streamed(draws, centre=truth), Reference.known(truth, [1]))
    assert found["gradient_norm_squared"].value < 0
    assert math.isnan(found["gradient_cosine"].value)
    assert math.isnan(found["gradient_variance_relative_own"].value)


def test_a_cosine_never_leaves_its_range():
    """Debiased norms are too small about as often as too large, so that the ratio of a right direction exceeds 1."""
    truth = torch.ones(30, dtype=torch.float64)
    found = [
        measured(streamed(truth + 3 * normal(40, 30, seed=i), centre=truth), Reference.known(truth, [30]))
        for i in range(8)
    ]
    cosines = [one["gradient_cosine"] for one in found]
    assert all(-1 <= c.low <= c.value <= c.high <= 1 for c in cosines)
    assert any(c.high == 1 for c in cosines)


def test_squared_quantities_are_right_on_average_when_estimates_and_reference_are_noisy():
    """1500 data sets of 6 pairs, and of a reference of 8 draws.

    Undebiased, the squared bias would read 1 too much, more than twice what the false-alarm rate allows."""
    truth, bias = torch.tensor([1.0, 0.0, -1.0]).double(), torch.tensor([0.5, 0.5, 0.0]).double()
    expected = {
        "gradient_variance": 6.0,
        "gradient_variance_sampling": 3.0,
        "gradient_variance_prompts": 3.0,
        "gradient_bias_squared": 0.5,
        "gradient_mse": 6.5,
        "gradient_norm_squared": 3.5,
        "gradient_reference_dot": 2.5,
        "gradient_reference_norm_squared": 2.0,
    }
    rows = defaultdict(list)
    for i in range(1500):
        shared, first, second = normal(3, 6, 3, seed=("draws", i))
        run = Moments(truth, [3], 8)
        run.add(truth + normal(8, 3, seed=("reference", i)))
        centred = truth + bias + shared
        moments, reference = streamed(centred + first, centred + second, truth), Reference(run, exact=False)
        found = values_alone(moments, reference)
        for name, value in found.items():
            rows[name].append(value)
    shown = values_of(measured(moments, reference))
    assert all(shown[name] == found[name] for name in expected)
    threshold = scipy.stats.norm.isf(ALPHA / 2 / len(expected))  # false alarms ALPHA for all of them together
    naive = 4.5 / 6 + 3 / 8  # what the noise of both means adds to a squared bias
    for name, value in expected.items():
        error = float(np.std(rows[name]) / math.sqrt(len(rows[name])))
        assert abs(np.mean(rows[name]) - value) < threshold * error, name
        assert (threshold + 3) * error < naive, name  # power above 0.998 for the squared bias left as it is


@pytest.mark.parametrize("noisy", [False, True])
def test_the_variance_of_squared_noise_is_right_on_average(noisy):
    """2 tr S^2 of Gaussian noise with covariance S, from 1000 data sets; counting squares of a contrast itself, which
    have the mean of (tr S)^2 too, would more than double it."""
    scale = torch.tensor([1.0, 2.0, 0.5]).double()
    truth, found = torch.ones(3, dtype=torch.float64), []
    for i in range(1000):
        run = Moments(truth, [3], 8)
        run.add(truth + 0.5 * normal(16, 3, seed=("reference", i)))
        reference = Reference(run, exact=False) if noisy else Reference.known(truth, [3])
        draws = streamed(truth + scale * normal(40, 3, seed=("draws", i)), centre=truth)
        found.append(measures._variance_of_squared_noise(summaries(draws, reference, ["0"])[""]))
    covariance = scale.square() / 40 + noisy * 0.25 / 16
    error = float(np.std(found)) / math.sqrt(1000)
    true = 2 * float(covariance.square().sum())
    threshold = scipy.stats.norm.isf(ALPHA / 2)
    assert abs(np.mean(found) - true) < threshold * error
    assert (threshold + 3) * error < 0.25 * true  # power 0.998 for 25 %


def test_the_interval_of_a_squared_bias_of_zero_is_as_wide_as_its_noise():
    """The jackknife alone sees next to nothing where the noise that was found is small: in 200 data sets, power 0.97."""
    truth = torch.ones(3, dtype=torch.float64)
    error = math.sqrt(2 * 3) / 40  # of |noise|^2, the mean of 40 draws of variance 1 in 3 dimensions
    quantile = scipy.stats.t.isf(0.025, BLOCKS - 1)
    for i in range(200):
        draws = streamed(truth + normal(40, 3, seed=("draws", i)), centre=truth)
        found = measured(draws, Reference.known(truth, [3]))["gradient_bias_squared"]
        # The error's estimate, of 19 contrasts in 3 dimensions, is 0.98 +- 0.19 of it (in 1500 others 0.48 at least);
        # that of the jackknife, about 0.82 chi with 3 degrees of freedom, is below 1/3 with rate 0.017.
        assert (found.high - found.low) / 2 > quantile * error / 3


def test_intervals_need_two_blocks():
    truth = torch.ones(3, dtype=torch.float64)
    found = measured(streamed(normal(1, 3), normal(1, 3, seed=1), truth), Reference.known(truth, [3]))
    assert all(math.isnan(interval.low) and math.isnan(interval.high) for interval in found.values())


# --- coverage of the intervals ----------------------------------------------------------------------------------

SETS, PAIRS, REFERENCE_DRAWS = 400, 100, 16
LEAST = 0.92  # coverage of an interval that calls itself 95 %
ALARMS = 1e-5  # of one assertion on an interval that covers LEAST; there are about 110
REGULAR = {
    "gradient_variance",
    "gradient_variance_sampling",
    "gradient_variance_prompts",
    "gradient_variance_relative",
    "gradient_variance_relative_own",
    "gradient_direction_error",
    "gradient_snr",
    "gradient_norm_squared",
    "gradient_reference_dot",
    "gradient_mse",
    "gradient_mse_relative",
}
# Half of all 16 combinations, such that any three of the factors come in all combinations.
SCENARIOS = [
    (kind, size, bias, (kind == "skewed") ^ (size == 60) ^ (bias > 0))  # the last: whether the reference is noisy
    for kind, size, bias in itertools.product(["gaussian", "skewed"], [3, 60], [0.0, 0.5])
]


def noise(kind, shape, rng):
    """Mean 0, variance 1."""
    drawn = torch.empty(shape, dtype=torch.float64)
    return drawn.normal_(generator=rng) if kind == "gaussian" else drawn.exponential_(generator=rng) - 1


def true_metrics(truth, mean, sampling, prompts):
    variance, norm, own = sampling + prompts, float(truth @ truth), float(mean @ mean)
    bias = float((mean - truth).square().sum())
    return {
        "gradient_variance": variance,
        "gradient_variance_sampling": sampling,
        "gradient_variance_prompts": prompts,
        "gradient_variance_relative": variance / norm,
        "gradient_variance_relative_own": variance / own,
        "gradient_snr": norm / variance,
        "gradient_cosine": float(mean @ truth) / math.sqrt(own * norm),
        "gradient_bias_squared": bias,
        "gradient_bias_relative": bias / norm,
        "gradient_mse": variance + bias,
        "gradient_mse_relative": (variance + bias) / norm,
        "gradient_direction_error": 1 - float(mean @ truth) ** 2 / (variance + own) / norm,
        "gradient_norm_squared": own,
        "gradient_reference_dot": float(mean @ truth),
        "gradient_reference_norm_squared": norm,
    }


def covered(kind, size, bias, noisy):
    """How many of SETS simulated data sets have intervals that cover the truth, by metric."""
    truth = torch.ones(size, dtype=torch.float64)
    mean = truth + bias * (torch.arange(size) % 3 == 0)  # the bias turns the gradient, too
    known = true_metrics(truth, mean, sampling=0.7 * size, prompts=0.3 * size)
    counts = dict.fromkeys(known, 0)
    rng = generator("cpu", "coverage", kind, size, str(bias))
    for _ in range(SETS):
        reference = Reference.known(truth, [size])
        if noisy:
            run = Moments(torch.zeros(size, dtype=torch.float64), [size], 8)
            run.add(truth + 0.3 * noise(kind, (REFERENCE_DRAWS, size), rng))
            reference = Reference(run.recentred(), exact=False)
        shared = mean + math.sqrt(0.3) * noise(kind, (PAIRS, size), rng)
        first, second = (shared + math.sqrt(0.7) * noise(kind, (PAIRS, size), rng) for _ in range(2))
        found = measured(streamed(first, second, reference.moments.centre), reference)
        assert found.keys() == known.keys()
        for name, true in known.items():
            rounding = 1e-12 * abs(true)
            counts[name] += found[name].low - rounding <= true <= found[name].high + rounding
    return counts


@pytest.fixture(scope="module")
def coverage():
    return {scenario: covered(*scenario) for scenario in SCENARIOS}


@pytest.mark.heavy
@pytest.mark.parametrize("scenario", SCENARIOS, ids=str)
def test_every_interval_covers_the_truth(coverage, scenario):
    """Each count is binomial: one at LEAST is below the floor with probability ALARMS, one of 0.8 with 0.999."""
    floor = scipy.stats.binom.ppf(ALARMS, SETS, LEAST)
    assert scipy.stats.binom.cdf(floor - 1, SETS, 0.80) > 0.998
    assert not {name: count / SETS for name, count in coverage[scenario].items() if count < floor}


@pytest.mark.heavy
@pytest.mark.parametrize("metric", list(true_metrics(torch.ones(1), torch.ones(1), 1.0, 1.0)))
def test_the_intervals_of_a_metric_cover_the_truth_in_all_scenarios_together(coverage, metric):
    """As above, with eight times the data: a mean coverage of 0.88 is found with probability 0.999."""
    total = SETS * len(SCENARIOS)
    floor = scipy.stats.binom.ppf(ALARMS, total, LEAST)
    assert scipy.stats.binom.cdf(floor - 1, total, 0.88) > 0.998
    assert sum(counts[metric] for counts in coverage.values()) >= floor


@pytest.mark.heavy
@pytest.mark.parametrize("metric", sorted(REGULAR))
def test_the_intervals_of_regular_quantities_are_not_needlessly_wide(coverage, metric):
    """At most 99.5 % in all scenarios together; one of 98 % fails with probability 1e-9, one of 99.9 % hardly passes."""
    total = SETS * len(SCENARIOS)
    assert scipy.stats.binom.sf(0.995 * total, total, 0.98) < 1e-9
    assert scipy.stats.binom.cdf(0.995 * total, total, 0.999) < 1e-3
    assert sum(counts[metric] for counts in coverage.values()) <= 0.995 * total


@pytest.mark.heavy
@pytest.mark.parametrize("metric", ["gradient_bias_squared", "gradient_bias_relative"])
def test_the_intervals_of_a_bias_that_is_there_are_not_needlessly_wide(coverage, metric):
    """Near zero they are conservative; as above otherwise, with the same rates for half of the scenarios at 97.5 %."""
    there = [counts[metric] for (_, _, bias, _), counts in coverage.items() if bias]
    assert scipy.stats.binom.sf(0.995 * SETS * len(there), SETS * len(there), 0.975) < 1e-7
    assert sum(there) <= 0.995 * SETS * len(there)


def test_an_interval_of_which_the_reference_alone_is_the_noise_has_the_references_degrees_of_freedom():
    """Eight blocks: t with 7 degrees of freedom, times the jackknife's error over the reference's blocks."""
    run = Moments(torch.zeros(4, dtype=torch.float64), [4], 8)
    vectors = normal(16, 4) + 3
    run.add(vectors)
    reference = Reference(run.recentred(), exact=False)
    found = measured(streamed(normal(40, 4, seed=1), centre=reference.moments.centre), reference)

    def norm_squared(kept):
        return float(kept.mean(0).square().sum() - kept.var(0).sum() / len(kept))

    left = np.array([norm_squared(vectors[torch.arange(16) % 8 != block]) for block in range(8)])
    error = math.sqrt(7 / 8 * np.square(left - left.mean()).sum())
    interval = found["gradient_reference_norm_squared"]
    assert interval.value == pytest.approx(norm_squared(vectors))
    assert interval.high - interval.value == pytest.approx(scipy.stats.t.isf(0.025, 7) * error)


# --- draws ------------------------------------------------------------------------------------------------------


class Counting(Estimator):
    """Estimate k of a batch is k everywhere; `reset` starts a batch."""

    period = 3

    def reset(self):
        self.calls = 0

    def gradient(self, problem, rng):
        self.calls += 1
        return Estimate([torch.full_like(p, float(self.calls)) for p in problem.params])


class Noise(Estimator):
    """Notes the problems and generators of its draws."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def gradient(self, problem, rng):
        self.seen.append(problem.prompts.tolist())
        return Estimate([torch.randn(p.shape, generator=rng, dtype=p.dtype) for p in problem.params])


class Undeclared(Estimator):
    def gradient(self, problem, rng):
        return Estimate(problem.grad(problem.soft_reward(problem.rollout(lambda x: x.softmax(-1), 1))))


class BatchMean(Estimator):
    """REINFORCE with the mean over the batch as its baseline: its contexts read each other's rewards."""

    def gradient(self, problem, rng):
        z = problem.sample(2, rng)
        reward = problem.reward(z)
        return Estimate(problem.grad(score(problem, z, reward, reward - reward.mean())))


class Coin(Estimator):
    """One of two values, so that two draws are often equal by luck."""

    def gradient(self, problem, rng):
        side = float(torch.rand((), generator=rng) < 0.5)
        return Estimate([torch.full_like(p, side) for p in problem.params])


def source_of(whole, contexts=4, seed=0):
    """Pairs of draws on `contexts` of the problem's contexts."""

    def indices(number):
        return torch.randperm(whole.contexts, generator=generator("cpu", seed, number, "prompts"))[:contexts]

    def problem(index, ledger):
        part = whole.select(index)
        part.ledger = ledger or part.ledger
        return part

    return Source(indices, problem, lambda draw: generator("cpu", seed, draw))


@pytest.fixture
def language(tiny_problem):
    """27 sequences, 8 contexts, a penalty that depends on the parameters."""
    return tiny_problem(contexts=8, beta=0.1)


def built(spec, problem):
    estimator = registry.resolve("estimators", spec).create()
    torch.manual_seed(0)
    estimator.init(problem)
    return estimator.eval()


def sizes_of(problem):
    return [p.numel() for p in problem.params]


def reference_of(problem):
    return Reference.known(flatten(problem.exact_gradient()), sizes_of(problem))


def moments(estimator, source, pairs, problem):
    return moments_of(estimator, source, pairs, flatten(problem.exact_gradient()), sizes_of(problem))


def test_one_estimate_is_the_mean_over_the_calls_that_share_a_fresh_batch(bernoulli_toy):
    estimator = Counting()
    for _ in range(2):
        assert one_estimate(estimator, bernoulli_toy(), generator("cpu", 0)).unique().tolist() == [2.0]
        assert estimator.calls == 3


def test_one_estimate_guards_the_problem(bernoulli_toy):
    with pytest.raises(PermissionError):
        one_estimate(Undeclared(), bernoulli_toy(), generator("cpu", 0))


def test_the_draws_of_a_pair_share_their_prompts_and_nothing_else(language, monkeypatch):
    monkeypatch.setattr(probes, "entries_at_once", lambda estimator, source: 0)
    estimator, source = Noise(), source_of(language)
    found = moments(estimator, source, 5, language)
    expected = [source.problem(source.contexts(number), None).prompts.tolist() for number in range(5)]
    drawn = estimator.seen
    assert drawn[::2] == drawn[1::2] == expected
    draws = torch.stack([one_estimate(Noise(), language, source.generator(draw)) for draw in range(10)])
    by_hand = streamed(draws[::2], draws[1::2], found.centre, sizes_of(language))
    for name in ("sums", "counts", "squares", "halves"):
        torch.testing.assert_close(getattr(found, name), getattr(by_hand, name))


def test_estimates_without_noise_have_no_variance_and_no_bias(tiny_problem):
    """On the same contexts in every pair the exact gradient is one vector, and it is the reference."""
    problem = tiny_problem(contexts=4)
    estimator, source = built("exact", problem), source_of(problem, contexts=4)
    truth = flatten(problem.exact_gradient())
    drawn = moments_of(estimator, source, 50, truth, sizes_of(problem))
    assert drawn.count == BLOCKS  # more would say the same
    found = values_of(measured(drawn, Reference.known(truth, sizes_of(problem))))
    scale = float(truth @ truth)
    assert scale > 1e-3
    for name in ("variance", "variance_sampling", "variance_prompts", "bias_squared", "mse"):
        assert found[f"gradient_{name}"] == pytest.approx(0, abs=1e-24 * scale), name
    assert found["gradient_variance_sampling"] == 0
    assert found["gradient_cosine"] == pytest.approx(1)


def test_a_variance_of_zero_is_a_number_and_so_are_its_ends():
    same = normal(1, 4).expand(30, 4)
    found = measured(streamed(same, same, same[0]), Reference.known(same[0], [4]))
    for name in ("gradient_variance", "gradient_variance_sampling", "gradient_variance_relative"):
        assert found[name] == Interval(0.0, 0.0, 0.0), name


def test_the_exact_gradient_varies_by_its_prompts_alone(language):
    found = moments(built("exact", language), source_of(language), 50, language)
    found = values_of(measured(found, reference_of(language)))
    assert found["gradient_variance_sampling"] == 0 and found["gradient_variance_prompts"] > 1e-6


def test_two_draws_that_are_equal_by_luck_are_not_taken_for_all(bernoulli_toy):
    """A fair coin: of 64 sources about half begin with two equal draws, and each has a sampling variance of d / 4."""

    def drawn(seed):
        source = Source(lambda n: torch.arange(2), lambda i, ledger: bernoulli_toy(contexts=2), lambda n: (
            generator("cpu", seed, n)))  # fmt: skip
        return moments_of(Coin(), source, 30, torch.zeros(4, dtype=torch.float64), [4])

    found = [drawn(seed) for seed in range(64)]
    assert {one.count for one in found} == {30}
    # 30 pairs, of which each differs with probability 1/2: none does with probability 1e-9
    assert all(float(one.halves.sum()) > 0 for one in found)


SEPARATE = ["reinforce", "rloo", "grade", "grade-ste", "rebar", "exact"]


@pytest.mark.parametrize("spec", SEPARATE)
def test_draws_of_estimators_that_treat_contexts_apart_are_separate(language, spec):
    assert entries_at_once(built(spec, language), source_of(language))


def test_more_draws_share_a_pass_where_weights_are_not_copied(language):
    many, few = (entries_at_once(built(spec, language), source_of(language)) for spec in ("rloo", "rebar"))
    assert many > few > 0


@pytest.mark.parametrize("spec", ["ppo", "ppo:epochs=1,minibatches=1", "ppo:whiten=false,minibatches=1,epochs=1"])
def test_draws_of_estimators_that_cut_or_whiten_the_batch_are_not_separate(language, spec):
    assert not entries_at_once(built(spec, language), source_of(language))


def test_draws_that_share_a_baseline_are_not_separate(language):
    assert not entries_at_once(BatchMean(), source_of(language))


def test_draws_of_a_problem_that_cannot_be_replicated_are_not_separate(bernoulli_toy):
    source = Source(lambda n: torch.arange(2), lambda i, ledger: bernoulli_toy(contexts=len(i)), lambda n: (
        generator("cpu", n)))  # fmt: skip
    assert not entries_at_once(Coin(), source)


def test_estimates_without_noise_are_the_same_in_one_pass_and_one_by_one(language):
    """Contexts and copies are dealt out right, and each copy's gradient is scaled to its own mean."""
    estimator, source = built("exact", language), source_of(language)
    together = torch.cat(probes._many_estimates(estimator, source, range(1, 5)))
    for number in range(1, 5):
        alone = one_estimate(estimator, source.problem(source.contexts(number), None), source.generator(0))
        torch.testing.assert_close(together[number - 1], alone)
        torch.testing.assert_close(together[number + 3], alone)


@pytest.mark.parametrize("spec", ["reinforce", "rloo", "grade-ste", "rebar"])
def test_draws_in_one_pass_have_the_moments_of_draws_one_by_one(tiny_problem, monkeypatch, spec):
    """The mean's coordinates and both parts of the variance, in separate streams of 256 and 96 pairs.

    False alarms ALPHA for all together; a variance that is off by a factor of two is found with power 0.99.
    """
    problem = tiny_problem(contexts=8, beta=0.1)
    estimator = built(spec, problem)
    together = moments(estimator, source_of(problem, seed="together"), 256, problem)
    assert probes._pairs_at_once(estimator, source_of(problem), sum(sizes_of(problem))) > 1
    monkeypatch.setattr(probes, "entries_at_once", lambda estimator, source: 0)
    alone = moments(estimator, source_of(problem, seed="alone"), 144, problem)
    reference = reference_of(problem)
    one, other = measured(together, reference), measured(alone, reference)
    normal_quantile = scipy.stats.norm.isf(0.025)
    errors = []
    for name in ("gradient_variance", "gradient_variance_sampling"):
        # half-widths of the logarithm, on t quantiles: on the safe side
        error = math.hypot(*(math.log(i[name].high / i[name].low) / 2 / normal_quantile for i in (one, other)))
        errors.append(error)
        assert abs(math.log(one[name].value / other[name].value)) < scipy.stats.norm.isf(ALPHA / 6) * error, name
    assert max(errors) * (scipy.stats.norm.isf(ALPHA / 6) + 2.33) < math.log(2) * 2
    # Each coordinate's error from the blocks' means, t with at least 19 degrees of freedom.
    difference = together.mean - alone.mean
    error = torch.hypot(*((m.sums / m.counts[:, None]).std(0) / math.sqrt(len(m.counts)) for m in (together, alone)))
    used = error > 1e-12
    threshold = scipy.stats.t.isf(ALPHA / 6 / int(used.sum()), BLOCKS - 1)
    assert float((difference[used] / error[used]).abs().max()) < threshold
    assert float(difference[~used].abs().sum()) < 1e-9


def test_costs_are_those_of_one_draw(language):
    costs = costs_of(built("rloo", language), source_of(language))
    assert costs.pop("seconds") > 0
    sequences = 4 * 4  # four samples in each of four contexts
    assert costs["reward_calls"] == sequences and costs["tokens_sampled"] == 3 * sequences
    assert costs["backward_passes"] == 1


# --- slope ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("slope", [-1.0, -0.5])
def test_the_slope_of_a_power_law_is_its_exponent(slope):
    samples = [4, 8, 16, 32]
    laws = [3 * k**slope for k in samples]
    found = slope_of_log_variance(samples, [Interval(v, v / 1.2, v * 1.2) for v in laws])
    assert found.value == pytest.approx(slope)
    assert found.low < slope < found.high and found.high - found.value == pytest.approx(found.value - found.low)


@pytest.mark.parametrize("slope", [-1.0, -0.5])
def test_the_interval_of_the_slope_covers_it(slope):
    """400 fits on four variances with errors of 5 to 20 %: the count at 95 % is below the floor with rate 1e-4."""
    samples, errors = [4, 8, 16, 32], np.array([0.05, 0.2, 0.1, 0.05])
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(400):
        values = np.array(samples) ** slope * np.exp(errors * rng.standard_normal(4))
        intervals = [
            Interval(v, v * math.exp(-1.96 * e), v * math.exp(1.96 * e)) for v, e in zip(values, errors, strict=True)
        ]
        found = slope_of_log_variance(samples, intervals)
        hits += found.low <= slope <= found.high
    assert scipy.stats.binom.ppf(1e-4, 400, 0.95) <= hits <= scipy.stats.binom.isf(1e-4, 400, 0.95)


def test_a_slope_needs_two_variances():
    one, none = Interval(1.0, 0.9, 1.1), Interval(0.0, 0.0, 0.0)
    for intervals in ([one, none], [one, Interval(1.0, math.nan, math.nan)]):
        found = slope_of_log_variance([4, 8], intervals)
        assert math.isnan(found.value) and math.isnan(found.low) and math.isnan(found.high)
    assert math.isnan(slope_of_log_variance([4, 4], [one, one]).value)
    assert math.isnan(slope_of_log_variance([], []).value)
