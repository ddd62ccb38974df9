"""Diagnostics never destroy a result: what they can't compute is empty, with the reason, and the training stays."""

import json
import math
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradebench.experiment import cell_files, cells, harness, probe
from gradebench.experiment.plan import Cell, Plan
from gradebench.experiment.references import reference_cell
from gradebench.measurement.gradient_columns import COLUMNS, gradient_columns
from gradebench.measurement.gradient_metrics import Interval, gradient_metrics, slope_of_log_variance, summaries
from gradebench.measurement.moments import Moments, Reference
from gradebench.storage import records

FEW = {"deadline": None, "database": None, "derandomize": True}
SCALES = [
    0.0,
    1e-320,
    1e-200,
    1e-162,
    1e-81,
    1e-35,
    1e-17,
    1.0,
    1e8,
    1e38,
    1e77,
    1e154,
    1e200,
    1e300,
    math.inf,
    math.nan,
]


# --- numbers of any size --------------------------------------------------------------------------------------------


def draws(shape, seed, number, scale, odd):
    """Draws (number, 3) of one scale, all alike, or with one of another scale; or near the centre."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(number, 3)) * scale
    if shape == "alike":
        values[:] = values[0]
    elif shape == "one other":
        values[0] *= odd
    elif shape == "near one":
        values = 1 + values
    elif shape == "uneven":
        values *= np.exp(40 * rng.normal(size=(number, 1)))
    return torch.tensor(values)


LIMITS = {"gradient_cosine": (-1, 1), "gradient_direction_error": (0, 1)}
shapes = st.sampled_from(["plain", "alike", "one other", "near one", "uneven"])
scales = st.sampled_from(SCALES)


@settings(**FEW)
@given(shapes, shapes, scales, scales, scales, st.integers(2, 8), st.integers(0, 3), st.booleans(), st.booleans())
def test_metrics_of_draws_of_any_size_are_numbers_or_empty(one, two, scale, odd, of_truth, pairs, seed, exact, paired):
    with np.errstate(all="ignore"):
        if exact:
            reference = Reference.known(draws("plain", seed, 1, of_truth, odd)[0], [2, 1])
        else:
            run = Moments(torch.zeros(3, dtype=torch.float64), [2, 1], 4)
            run.add(draws(two, seed + 1, 6, of_truth, odd))
            reference = Reference(run.recentred(), exact=False)
        moments = Moments(reference.moments.centre, [2, 1], pairs)
        moments.add(
            draws(one, seed + 2, pairs, scale, odd), draws(one, seed + 3, pairs, scale, odd) if paired else None
        )
        found = summaries(moments, reference, ["a.x", "b.x"])
    assert set(found) == {"", "a", "b"}
    for summary in found.values():
        for name, interval in gradient_metrics(summary).items():
            assert all(isinstance(end, float) for end in vars(interval).values())
            assert not math.isinf(interval.value), name
            if not math.isnan(interval.low):
                assert interval.low <= interval.value <= interval.high, name
            least, most = LIMITS.get(name, (-math.inf, math.inf))
            assert all(math.isnan(end) or least <= end <= most for end in vars(interval).values()), name


@settings(**FEW)
@given(st.lists(st.tuples(scales, scales, scales), min_size=1, max_size=4), st.booleans())
def test_the_slope_of_variances_of_any_size_is_a_number_or_empty(found, alike):
    intervals = [Interval(a, a if alike else b, np.nextafter(a, math.inf) if alike else c) for a, b, c in found]
    slope = slope_of_log_variance([2**i for i in range(len(found))], intervals)
    assert math.isnan(slope.value) or slope.low <= slope.value <= slope.high


RAW = ["variance", "bias_squared", "norm_squared", "reference_dot", "reference_norm_squared"]


@settings(**FEW)
@given(st.lists(st.tuples(*[scales] * 5), min_size=2, max_size=6), st.booleans())
def test_columns_of_a_leaderboard_of_any_size_are_numbers_or_empty(rows, shared):
    places = [(name, seed, step) for name in "ab" for seed in range(2) for step in (0, 1)][: len(rows)]
    index = pd.MultiIndex.from_tuples(places, names=["estimator", "seed", "step"])
    frame = pd.DataFrame(rows[: len(places)], index=index, columns=[f"gradient_{name}" for name in RAW])
    if shared:
        frame["gradient_reference_norm_squared"] = 1.0
    with np.errstate(all="ignore"):
        found = gradient_columns(frame)
    for name in COLUMNS:
        assert not np.isinf(found[name]).any(), name


def test_an_interval_whose_end_is_too_large_to_be_a_number_warns_nobody():
    places = [(name, seed, 0) for name in "ab" for seed in range(3)]
    index = pd.MultiIndex.from_tuples(places, names=["estimator", "seed", "step"])
    frame = pd.DataFrame(1.0, index=index, columns=[f"gradient_{name}" for name in RAW])
    frame["gradient_variance"] = [1e-300, 1.0, 1e300] * 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = gradient_columns(frame)
    assert (
        found[[name for name in found if "variance" in name]].isna().all(axis=None)
    )  # wider than a factor can be told


# --- cells -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def plan(tmp_path):
    shared = {"run_id": "run", "out": str(tmp_path), "device": "cpu", "steps": 2, "batch": 8, "learning_rate": 0.02}
    return Plan(**shared, checkpoints=2, probe_draws=4, warm_up=1, reference_draws=2)


@pytest.fixture
def cell_of(tiny):
    def build(estimator="rloo", scale=1.0):
        return Cell("scaled", tiny("Scaled"), {"scale": scale}, estimator, estimator, 0)

    return build


def run(plan, cell, references=True):
    """Status and reason of a cell, its rows, its probes, and whether a later command leaves it as it is."""
    for number in range(len(cell_files.checkpoint_steps(plan)) if references else 0):
        reference_cell(plan, cell, number)
    folder = Path(plan.out) / "cells" / cell.id
    records.forget_cell(folder)
    status, reason = harness.run_cell(plan, cell, "key")
    probes = pd.read_feather(folder / records.PROBES) if (folder / records.PROBES).exists() else pd.DataFrame()
    return status, reason, pd.read_feather(folder / records.METRICS), probes, records.is_finished(folder, "key")


def fails(*arguments, **options):
    raise OverflowError("math range error")


@pytest.mark.parametrize("part", ["moments_of", "gradient_metrics", "shared_checkpoint", "summaries"])
def test_a_probe_that_fails_leaves_the_training_ok(plan, cell_of, monkeypatch, part):
    whole = run(plan, cell_of())
    assert whole[:2] == ("ok", "") and whole[4]
    monkeypatch.setattr(probe, part, fails)
    status, reason, rows, probes, finished = run(plan, cell_of(), references=False)
    assert (status, reason) == ("ok", "no gradient probes: OverflowError: math range error")
    assert set(rows["status"]) == {"ok"} and probes.empty and not finished
    trained = whole[2][whole[2]["phase"] != "probe"]
    assert len(rows) == len(trained)
    pd.testing.assert_series_equal(rows["metric"], trained["metric"].reset_index(drop=True))
    folder = Path(plan.out) / "cells" / cell_of().id
    assert "Traceback" in (folder / "error.txt").read_text()
    assert json.loads((folder / records.ENDED).read_text())["reason"] == reason


@pytest.mark.parametrize(("part", "what"), [("costs_of", "the costs"), ("by_call", "the calls"), ("_probe_batch_sizes", "smaller batches")])  # fmt: skip
def test_a_part_of_a_probe_that_fails_leaves_the_others(plan, cell_of, monkeypatch, part, what):
    monkeypatch.setattr(probe, part, fails)
    status, reason, rows, probes, _ = run(replace(plan, train=False, details=True), cell_of("ppo"))
    assert status == "ok" and what in reason and "OverflowError" in reason
    assert set(rows["status"]) == {"ok"} and {0, 2} == set(probes["step"])
    measured = probes[(probes["group"] == "") & (probes["metric"] == "gradient_variance")]
    assert measured["value"].gt(0).all() and len(measured) == 2


def test_a_full_disk_is_no_diagnostic(plan, cell_of, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(probe, "summaries", full)
    with pytest.raises(OSError, match="No space"):
        run(plan, cell_of())


@pytest.mark.parametrize("scale", [0.0, 1e-45, 1e-38, 1e-20, 1e19, 1e25, 1e30])
def test_rewards_of_any_size_are_trained_with_and_probed(plan, cell_of, scale):
    """Squares of single precision end at 1e38: a clipped update needs none of them."""
    status, reason, rows, probes, _ = run(plan, cell_of(scale=scale))
    assert (status, reason) == ("ok", "")
    figures = rows.groupby("metric")["value"].last()
    assert "updates_refused" not in figures
    assert figures["clipped_updates"] == float(scale > 1)
    assert (probes["metric"] == "gradient_variance").any()


def test_rewards_beyond_single_precision_are_named_where_a_training_diverges(plan, cell_of):
    status, reason, rows, _, _ = run(plan, cell_of(scale=3e38), references=False)
    assert status == "diverged" and set(rows["status"]) == {"diverged"}
    assert "rewards as large as" in reason and "no square in float32" in reason
    assert "neither was the reward of" in run(plan, cell_of(scale=math.inf), references=False)[1]


def test_draws_that_arent_finite_make_an_empty_probe_with_its_reason(plan, cell_of, monkeypatch):
    monkeypatch.setattr("gradebench.measurement.probes.flatten", lambda gradient: torch.cat([g.flatten().double() for g in gradient]) * math.inf)  # fmt: skip
    status, reason, rows, probes, _ = run(plan, cell_of())
    assert status == "ok" and "the probe at step 0 is empty: gradients, or their squares, were not finite" in reason
    assert set(rows["status"]) == {"ok"} and probes["value"].isna().any()


# --- what isn't needed isn't computed -------------------------------------------------------------------------------


def test_probes_along_each_estimators_own_trajectory_need_no_reference_trajectory(command, tiny, tmp_path, in_process, monkeypatch):  # fmt: skip
    monkeypatch.setattr("gradebench.experiment.references._reference_cell", fails)
    command_line = ("probe", "-t", tiny(), "-e", "reinforce", "--steps", 2, "--draws", 4)
    assert command(*command_line, "--along", "own", "--out", tmp_path / "own")[0] == 0
    assert set(pd.read_csv(tmp_path / "own" / "probes.csv")["along"]) == {"own"}
    assert not list(tmp_path.glob("own/cells/*reference*"))
    status, _, said = command(*command_line, "--out", tmp_path / "shared")
    assert status == 1 and "the reference gradient failed: OverflowError: math range error" in said


def test_only_shared_trajectories_are_waited_for(plan, cell_of):
    jobs = [(plan, cell_of(), "", None)]
    assert len(list(cells._references(jobs, False))) == 2
    assert not list(cells._references([(replace(plan, along="own"), *jobs[0][1:])], False))
