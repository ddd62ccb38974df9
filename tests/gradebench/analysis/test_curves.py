"""Curves at equal budgets: exact readings, who takes part, and that tables, terminal and figures have the same numbers."""

import numpy as np
import pandas as pd
import pytest

from gradebench.analysis import curves, fields, statistics, tables
from gradebench.core import schema
from gradebench.reporting import figures

STEPS = (0, 5, 10, 20, 40)


def cell(estimator, seed, objective, kl=lambda step: 0.1 * step, costs=True, seconds=0.5, steps=STEPS, **other):
    """The rows of one cell whose objective at a step is objective(step); 16 samples and 1 update a step."""
    names = {"run_id": "run", "cell_id": f"{estimator}-{seed}", "task": "imdb", "setting": "s", "estimator": estimator}
    names |= {"estimator_params": "{}", "estimator_source": "here", "seed": seed, "unit": "", "status": "ok"} | other
    rows = []
    for step in steps:
        measured = [("objective", objective(step)), ("reward", objective(step) + 0.1), ("kl", kl(step))]
        rows += [("evaluation", "test", step, metric, value) for metric, value in measured]
        spent = {"reward_calls": 16.0 * step, "updates": float(step), "seconds": seconds * step}
        rows += [("train", "train", step, metric, value) for metric, value in spent.items() if costs]
    columns = ("phase", "split", "step", "metric", "value")
    return [names | dict(zip(columns, row, strict=True)) for row in rows]


def frame(*cells):
    return pd.DataFrame([row for rows in cells for row in rows], columns=schema.METRICS_COLUMNS)


def log_line(level, slope):
    return lambda step: level + slope * np.log2(max(step, 2.5) / 5)


def changing(seeds=range(8), **other):
    """b starts lower and climbs faster: the two cross after 5 * 2**1.5 = 14.1 steps, whatever the seed."""
    rng = np.random.default_rng(0)
    cells = []
    for seed, shift in zip(seeds, rng.normal(0, 0.1, len(seeds)), strict=True):
        cells.append(cell("a", seed, log_line(0.5 + shift, 0.0), **other))
        cells.append(cell("b", seed, log_line(0.2 + shift + 0.002 * rng.normal(), 0.2), **other))
    return frame(*cells)


def curve(budgets, values):
    return fields.Curve(np.array(budgets, dtype=float), np.array(values, dtype=float))


# --- one seed's curve


def test_budgets_between_evaluations_are_linear_in_their_logarithm():
    one = curve([0, 5, 20, 80], [9, 1, 3, 4])
    read = fields.at_budgets(one, [5, 10, 20, 40, 80], "steps")
    assert read == pytest.approx([1, 2, 3, 3.5, 4], rel=1e-12)


def test_nothing_is_extrapolated_or_read_across_a_missing_value():
    one = curve([0, 5, 20, 80, 160], [9, 1, np.nan, 4, 5])
    read = fields.at_budgets(one, [2, 5, 10, 40, 80, 160, 161], "samples")
    assert np.isnan(read).tolist() == [True, False, True, True, False, False, True]
    assert np.isnan(fields.at_budgets(curve([0], [1]), [1.0], "steps")).all()


@pytest.mark.parametrize(
    ("kl", "wanted", "read"),
    [
        ([0, 2, 1, 4], [1, 2, 3], [0.5, 1.0, 2 + 2 / 3]),  # falls again: the first time counts, and 3 comes after
        ([4, 2, 3, 1], [3, 2.5, 1, 0.5], [0.5, 0.75, 3.0, np.nan]),  # from above
        ([1, 1, 2, 2], [1, 2, 1.5], [0.0, 2.0, 1.5]),  # hit from the start on
        ([0, 1, 2, 3], [3.5, 0], [np.nan, 0.0]),
    ],
)
def test_a_divergence_is_read_where_it_is_first_come_to(kl, wanted, read):
    assert fields.at_budgets(curve(kl, [0, 1, 2, 3]), wanted, "kl") == pytest.approx(read, nan_ok=True)


# --- the table


def test_the_table_by_hand():
    metrics = changing()
    rows = curves.budgets(metrics, axes=["steps"])
    assert list(rows.columns) == curves.BUDGETS_COLUMNS and set(rows["metric"]) == {"objective"}
    assert rows.loc[rows["leader"], ["budget", "estimator"]].to_numpy().tolist() == [
        [5, "a"], [10, "a"], [20, "b"], [40, "b"],
    ]  # fmt: skip
    values = metrics[(metrics["metric"] == "objective") & (metrics["step"] == 20) & (metrics["phase"] == "evaluation")]
    wide = values.pivot(index="seed", columns="estimator", values="value")
    here = rows[rows["budget"] == 20].set_index("estimator")
    assert here["mean"].to_dict() == pytest.approx(wide.mean().to_dict())
    assert here.loc["a", "p_vs_leader_holm"] == statistics.paired_permutation_p(wide["a"] - wide["b"])
    assert np.isnan(here.loc["b", "p_vs_leader_holm"]) and (here["ci_low"] < here["mean"]).all()
    leaders = curves.leaders(rows)
    assert leaders["not_different"].tolist() == [""] * 4 and leaders["compared"].tolist() == [2] * 4


def test_holm_counts_all_pairs_at_a_budget():
    three = pd.concat([changing(), frame(*(cell("c", seed, log_line(0.1, 0.0)) for seed in range(8)))])
    rows = curves.budgets(three, axes=["steps"])
    least = statistics.smallest_attainable_p(8)
    assert rows.loc[rows["rank"] > 1, "p_vs_leader_holm"].max() == pytest.approx(3 * least)


def test_axes_that_cost_all_the_same_have_the_values_of_steps():
    rows = curves.budgets(changing())
    assert curves.proportional(rows) == ["samples", "updates", "seconds"] and "tokens" not in set(rows["axis"])
    by = dict(iter(rows.groupby("axis")))
    assert by["samples"]["budget"].unique().tolist() == [80, 160, 320, 640]
    assert by["samples"]["mean"].to_numpy() == pytest.approx(by["steps"]["mean"].to_numpy())


def test_a_slower_one_is_behind_by_seconds_alone():
    shared = [cell("a", seed, log_line(0.0, 0.1), seconds=1.0) for seed in range(6)]
    slow = [cell("slow", seed, log_line(0.01, 0.1), seconds=2.0) for seed in range(6)]
    rows = curves.budgets(frame(*shared, *slow), axes=["steps", "seconds"])
    leaders = rows[rows["leader"]].groupby("axis")["estimator"].unique().to_dict()
    assert leaders["steps"].tolist() == ["slow"] and leaders["seconds"].tolist() == ["a"]
    mine = rows[(rows["axis"] == "seconds") & (rows["estimator"] == "slow")].set_index("budget")["mean"]
    assert mine[40.0] == pytest.approx(0.01 + 0.1 * 2)  # it has made 20 steps by then
    assert rows.loc[rows["axis"] == "seconds", "budget"].max() == 40.0  # a's end


def test_an_estimator_takes_part_where_all_of_its_seeds_come():
    far = [cell(name, seed, log_line(0.5, 0.1)) for name in "ab" for seed in range(3)]
    near = [
        cell("c", seed, log_line(0.9, 0.1), kl=lambda step, seed=seed: 0.05 * step * (1 + seed)) for seed in range(3)
    ]
    rows = curves.budgets(frame(*far, *near), axes=["kl"])
    reached = rows.groupby("estimator")["budget"].max()
    assert reached["a"] == reached["b"] == 4.0 and reached["c"] == 2.0  # seed 0's end, not seed 2's
    assert rows.loc[rows["leader"], "estimator"].tolist() == ["a", "c", "c", "a"]  # from 0.5 on; a tie goes by name
    assert curves.leaders(rows)["compared"].tolist() == [2, 3, 3, 2]


def test_a_value_that_is_not_finite_takes_its_seed_out_there():
    metrics = changing()
    here = (metrics["estimator"] == "a") & (metrics["seed"] == 3) & (metrics["step"] == 20)
    metrics.loc[here & (metrics["metric"] == "objective"), "value"] = np.inf
    rows = curves.budgets(metrics, axes=["steps"]).set_index(["budget", "estimator"])
    assert rows["n_seeds"].to_dict() == {(b, e): 7 if (b, e) == (20, "a") else 8 for b in STEPS[1:] for e in "ab"}


def test_steps_that_a_cell_lacks_are_no_budgets_and_costs_that_it_lacks_no_axis():
    metrics = changing()
    lost = metrics[(metrics["seed"] != 2) | (metrics["step"] != 10)]
    assert curves.budgets(lost, axes=["steps"])["budget"].unique().tolist() == [5, 20, 40]
    old = metrics[(metrics["phase"] != "train") | (metrics["step"] == 40)]
    assert set(curves.budgets(old)["axis"]) == {"steps", "kl"}
    no_objective = metrics[metrics["metric"] != "objective"]
    assert set(curves.budgets(no_objective)["metric"]) == {"reward"}
    assert curves.budgets(metrics, by="gold_reward").empty and curves.crossings_of(metrics, by="gold_reward").empty


def test_failed_cells_and_controls_count_for_nothing():
    metrics = changing()
    failed = frame(cell("c", 0, log_line(2.0, 0.0), status="failed"), cell(f"a{tables.CONTROL}", 0, log_line(3.0, 0.0)))
    pd.testing.assert_frame_equal(curves.budgets(pd.concat([metrics, failed])), curves.budgets(metrics))


def test_neither_the_order_of_rows_nor_other_tasks_matter():
    metrics = changing()
    other = metrics.assign(task="toy", cell_id="toy-" + metrics["cell_id"])
    mixed = pd.concat([other, metrics]).sample(frac=1.0, random_state=1)
    for table in (curves.budgets, curves.crossings_of):
        mine = table(mixed)
        pd.testing.assert_frame_equal(mine[mine["task"] == "imdb"].reset_index(drop=True), table(metrics))


# --- where the lead changes


def test_the_crossing_of_two_lines_is_theirs_in_words_too():
    (row,) = curves.crossings_of(changing(), axes=["steps"]).to_dict("records")
    assert row["crossing"] == pytest.approx(5 * 2**1.5, rel=0.01) and row["ci_low"] < row["crossing"] < row["ci_high"]
    assert (row["leader_before"], row["leader_after"], row["sign_changes"], row["n_pairs"]) == ("a", "b", 1, 8)
    assert row["verdict"].startswith("a leads up to 13") and "b from 14" in row["verdict"]
    assert row["verdict"].endswith("compared up to 40 steps")
    (turned,) = curves.crossings_of(changing(), axes=["steps"], pairs=[("b", "a")]).to_dict("records")
    same = ["crossing", "ci_low", "ci_high", "leader_before", "leader_after", "verdict"]
    assert [turned[name] for name in same] == [row[name] for name in same]


def test_no_change_and_undecided_are_said_with_the_budget():
    above = [cell("top", seed, log_line(2.0 + 0.01 * seed, 0.0)) for seed in range(8)]
    rows = curves.crossings_of(pd.concat([changing(), frame(*above)]), axes=["steps"], pairs=[("top", "a")])
    assert rows["verdict"].item() == "no change up to 40 steps: top leads throughout" and rows["crossing"].isna().all()
    few = curves.crossings_of(changing(range(1)), axes=["steps"])
    assert few["verdict"].item() == (
        "undecided up to 40 steps: 1 paired seed can't give a significant result, 6 are needed"
    )
    assert few["ci_low"].isna().all() and curves.budgets(changing(range(1)))["ci_low"].isna().all()
    tied = frame(*(cell(name, seed, log_line(0.5, 0.1)) for name in "ab" for seed in range(8)))
    assert curves.crossings_of(tied, axes=["steps"])["verdict"].item() == "undecided up to 40 steps"
    assert curves.budgets(tied, axes=["steps"]).query("leader")["estimator"].tolist() == ["a"] * 4


# --- where they are shown


@pytest.fixture
def run(tmp_path):
    tables.write_parquet(changing(), tmp_path / "metrics.parquet")
    return tmp_path


def test_the_command_shows_the_table_and_writes_it(command, run):
    status, out, err = command("curves", run, "b", "a", "--csv", run / "table.csv")
    assert status == 0, err
    assert "5 steps" in out and "40 steps" in out and "b and a: a leads up to 13" in out
    written, rows = pd.read_csv(run / "table.csv"), curves.budgets(changing(), axes=["steps"])
    pd.testing.assert_frame_equal(written, rows, check_dtype=False, rtol=1e-9)
    assert all(f"{mean:.3f}" in out for mean in rows.loc[rows["leader"], "mean"])
    assert "KL 4" in command("curves", run, "--axis", "kl", "--by", "reward")[1]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--axis", "epochs"), "axis 'epochs' is none of steps, samples, tokens, updates, seconds, kl"),
        (("--by", "loss"), "by 'loss' is none of objective, reward, gold_reward"),
        (("--by", "gold_reward"), "has no gold_reward by steps"),
        (("--axis", "tokens"), "has no objective or reward by tokens"),
        (("a", "c"), "the run has no estimator 'c' at these budgets; it has a, b"),
        (("a", "a"), "compared with itself"),
        (("a",), "compared with nothing"),
    ],
)
def test_what_cannot_be_shown_is_one_line(command, run, arguments, said):
    status, out, err = command("curves", run, *arguments)
    assert (status, out) == (2, "") and said in err and len(err.splitlines()) == 1


def test_figures_are_of_the_numbers_of_the_table():
    metrics = changing()
    rows = curves.budgets(metrics)
    board = pd.DataFrame({"estimator": ["b", "a"], "rank": [1, 2]})
    found = {figure.name: figure for figure in figures.at_budgets(board, rows)}
    assert set(found) == {"at-equal-steps", "at-equal-kl"}  # the others are those of steps, and it says so
    assert "samples and updates and seconds" in found["at-equal-steps"].caption
    for axis in ("steps", "kl"):
        data = found[f"at-equal-{axis}"].data
        pd.testing.assert_frame_equal(data, rows[rows["axis"] == axis])
        last = data[data["budget"] == data["budget"].max()].set_index("estimator")["mean"]
        assert all(f"to {last[name]:.3g}" in found[f"at-equal-{axis}"].picture for name in "ab")
