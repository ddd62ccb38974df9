"""Equal tuning: the same trials for all, the right choice from them, and a comparison that uses it and says so."""

import json
import math

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from gradebench.analysis import rate_curve
from gradebench.core.schema import METRICS_COLUMNS
from gradebench.experiment import tuning


def metrics(objective, statuses=None, rates=(0.001, 0.01, 0.1), seeds=(1000, 1001), beta=0.5):
    """Rows of a tuning: objective(estimator, rate, seed) of estimators a and b, whose KL is always 0.2."""
    rows = []
    for name in ("a", "b"):
        for rate in rates:
            for seed in seeds:
                status = (statuses or {}).get((name, rate, seed), "ok")
                cell = {"task": "t", "setting": "s", "estimator": f"{name} @ {rate:g}", "seed": seed, "status": status}
                values = {"reward": objective(name, rate, seed) + beta * 0.2, "kl": 0.2}
                for metric, value in values.items() if status == "ok" else {"": math.nan}.items():
                    for step in (0, 4):  # what came before the last step must not count
                        place = {"split": "validation", "step": step, "metric": metric}
                        rows.append(cell | place | {"value": value if step else -1.0})
    return pd.DataFrame(rows).reindex(columns=METRICS_COLUMNS)


def curves(*arguments, **keywords):
    return tuning.curves_of(tuning.trials_of(metrics(*arguments, **keywords), {"t": [4]}, {"t": 0.5}))


def chosen(table):
    return dict(table[table["chosen"]].set_index("estimator")["learning_rate"])


def test_the_rate_with_the_highest_mean_objective_is_marked():
    table = curves(lambda name, rate, seed: -abs(math.log10(rate) + (2 if name == "a" else 1)) + 0.01 * (seed - 1000.5))
    assert chosen(table) == {"a": 0.01, "b": 0.1}
    assert table.set_index(["estimator", "learning_rate"]).loc[("a", 0.01), "objective"] == pytest.approx(0.0)
    assert table["standard_error"].to_numpy() == pytest.approx(0.005)


def test_a_rate_at_which_a_seed_diverged_is_not_chosen():
    table = curves(lambda name, rate, seed: rate, statuses={("a", 0.1, 1001): "diverged"})
    assert chosen(table) == {"a": 0.01, "b": 0.1}
    lost = table.set_index(["estimator", "learning_rate"]).loc[("a", 0.1)]
    assert lost["status"] == "diverged" and math.isnan(lost["objective"])


def test_rates_go_on_where_the_best_is_at_an_end_that_nothing_bounds():
    def more(statuses=None):
        rising = metrics(lambda name, rate, seed: math.log(rate) * (1 if name == "a" else -1), statuses)
        return tuning.beyond(tuning.trials_of(rising, {"t": [4]}, {"t": 0.5}), {"t": 4})

    assert more() == {("t", "a"): 1.0, ("t", "b"): 1e-4}
    assert more({("a", 0.1, 1001): "diverged"}) == {("t", "b"): 1e-4}


def test_each_budget_has_its_own_rate():
    frame = metrics(lambda name, rate, seed: -((math.log10(rate) + 2) ** 2))
    early = frame.copy()
    early["step"] = early["step"].replace({4: 2, 0: 1})
    early.loc[early["metric"] == "reward", "value"] = [
        -((math.log10(float(name.split()[-1])) + 1.5) ** 2)
        for name in early.loc[early["metric"] == "reward", "estimator"]
    ]
    rows = tuning.trials_of(pd.concat([frame, early]), {"t": [2, 4]}, {"t": 0.5})
    found = {steps: tuning.chosen(rows, steps)["a"] for steps in (2, 4)}
    assert (found[2]["learning_rate"], found[4]["learning_rate"]) == (0.032, 0.01)
    assert found[4]["options"] == {} and not found[4]["at_the_end"] and found[4]["rates"] == [0.001, 0.01, 0.1]


def test_of_equal_rates_the_smaller_is_chosen():
    assert chosen(curves(lambda name, rate, seed: 1.0)) == {"a": 0.001, "b": 0.001}


def test_nothing_is_chosen_where_nothing_ended():
    every = {("a", rate, seed): "failed" for rate in (0.001, 0.01, 0.1) for seed in (1000, 1001)}
    assert chosen(curves(lambda name, rate, seed: rate, statuses=every)) == {"b": 0.1}


def test_what_was_skipped_has_no_curve():
    every = {("a", rate, seed): "skipped" for rate in (0.001, 0.01, 0.1) for seed in (1000, 1001)}
    assert set(curves(lambda name, rate, seed: rate, statuses=every)["estimator"]) == {"b"}


@pytest.mark.parametrize("trials", [1, 2, 5, 8, 34])
def test_rates_fill_the_logarithm_evenly(trials):
    """Halton's sequence in base 2 leaves gaps below 2 / n, plus the piece at an end; random ones leave ln n / n."""
    rates = np.sort(tuning.quasi_random_rates(1e-4, 1e-2, trials))
    shares = np.log(rates / 1e-4) / np.log(100)
    assert ((shares >= 0) & (shares < 1)).all() and len(set(rates)) == trials
    assert np.diff([0.0, *shares, 1.0]).max() < 2.7 / trials + 0.01


@pytest.fixture
def tuned(command, tiny, tmp_path, in_process, no_report, made_once):
    """Tune two estimators of the tiny task; returns the folder and what was printed."""

    def call(*more):
        out = tmp_path / "tuning"
        arguments = (
            "-e",
            "reinforce",
            "-e",
            "rloo",
            "-t",
            tiny(),
            "--trials",
            "3",
            "--seeds",
            "1000-1001",
            "--steps",
            "2",
            "--out",
            out,
            "--extensions",
            "0",
        )

        def make():
            status, shown, err = command("tune", *arguments, *more)
            assert status == 0, err
            return shown

        return out, made_once(("test_tuning", *more), out, make)

    return call


def test_every_estimator_gets_the_same_trials(tuned):
    out, shown = tuned()
    trials = pd.read_csv(out / "trials.csv")
    tried = trials.groupby("estimator")[["learning_rate", "seed"]].apply(lambda rows: sorted(map(tuple, rows.values)))
    assert tried["reinforce"] == tried["rloo"] and len(tried["rloo"]) == 6
    assert (trials["status"] == "ok").all()
    assert set(trials["seed"]) == {1000, 1001}
    (task,) = json.loads((out / "tuned.json").read_text())["tasks"].values()
    for name, mine in trials.groupby("estimator"):
        wide = mine.pivot(index="seed", columns="learning_rate", values="objective")
        best = rate_curve.choose(wide.columns, wide.to_numpy())
        assert task["estimators"][name]["learning_rate"] == best.rate
        assert task["estimators"][name]["rate_low"] <= best.rate <= task["estimators"][name]["rate_high"]
    assert list(pd.read_csv(out / "curves.csv").columns) == tuning.CURVES_COLUMNS
    assert "*" in shown and "tuned.json" in shown


def test_a_tuning_goes_on_with_what_is_finished(tuned, monkeypatch):
    out, _ = tuned()
    first = (out / "trials.csv").read_bytes()

    def never(*arguments):
        raise AssertionError("a finished cell was computed again")

    monkeypatch.setattr("gradebench.experiment.harness.run_cell", never)
    assert (tuned()[0] / "trials.csv").read_bytes() == first


def test_a_run_uses_the_rates_and_names_them(tuned, command, tiny, tmp_path):
    out, _ = tuned()
    (task,) = json.loads((out / "tuned.json").read_text())["tasks"].values()
    rates = {name: one["learning_rate"] for name, one in task["estimators"].items()}
    arguments = ("-e", "reinforce", "-e", "rloo", "-e", "grade", "-t", tiny(), "--steps", "2", "--seeds", "0-1")
    file = out / "tuned.json"
    status, _, err = command("run", *arguments, "--out", tmp_path / "run", "--tuned", file)
    assert status == 0, err
    assert f"learning rates (tuned: 3 rates x 2 seeds at 2 steps, in {file})" in err and "no rate for grade" in err
    (used,) = json.loads((tmp_path / "run" / "config.json").read_text())["learning_rates"].values()
    assert used == rates | {"grade": 0.02}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"seeds": "1001"}, "seed 1001 was tuned on"),
        ({"task": "TinyTask:kl=0.5"}, "it is of [kl=0]"),
        ({"file": "nowhere.json"}, "can't read nowhere.json"),
        ({"file": __file__}, "isn't a tuned.json"),
    ],
)
def test_rates_of_something_else_are_refused(tuned, command, tiny, tmp_path, change, said):
    out, _ = tuned()
    if "task" in change:  # the same label as the one that was tuned, in another setting
        content = json.loads((out / "tuned.json").read_text())
        (label,) = content["tasks"]
        content["tasks"] = {"tiny.py:TinyTask:kl=0.5": content["tasks"][label]}
        (out / "tuned.json").write_text(json.dumps(content))
        (out / "digests.json").unlink()  # it is edited
    arguments = ("-e", "rloo", "-t", tiny(change.get("task", "TinyTask")), "--seeds", change.get("seeds", "0-1"))
    file = change.get("file", out / "tuned.json")
    status, shown, err = command("run", *arguments, "--steps", "2", "--out", tmp_path / "run", "--tuned", file)
    assert (status, shown) == (2, "")
    assert said in err and len(err.splitlines()) == 1, err
    assert not (tmp_path / "run").exists()


# --- options along with the rate --------------------------------------------------------------------------------


def test_points_fill_the_cube_and_rates_do_not_depend_on_what_else_varies():
    """Sixteen points in three dimensions, more even than the best of 50 random sets."""
    points = tuning.quasi_random(16, 3)
    assert points[:, 0].tolist() == tuning.quasi_random(16, 1)[:, 0].tolist()
    assert points[:8].tolist() == tuning.quasi_random(8, 3).tolist()
    rng = np.random.default_rng(0)
    random = [scipy.stats.qmc.discrepancy(rng.random((16, 3))) for _ in range(50)]
    assert scipy.stats.qmc.discrepancy(points) < min(random)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("gumbel-rao:tau=0.1..10", {0.0: "0.1", 0.5: "1", 1.0: "10"}),
        ("gumbel-rao:k=2..4", {0.0: "2", 0.5: "3", 0.999: "4", 1.0: "4"}),
        ("ppo:whiten=true|false", {0.0: "true", 0.49: "true", 0.5: "false", 0.999: "false"}),
        ("ppo:lam=0..1", {0.0: "0", 0.25: "0.25", 1.0: "1"}),  # an end at 0 has no logarithm
    ],
)
def test_a_range_is_walked_by_its_type(text, expected):
    label, (varied,) = tuning.parse_varied(text)
    assert label == text.partition(":")[0]
    assert {share: varied.at(share) for share in expected} == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("ppo", "names no option"),
        ("ppo:lam=0.5", "nothing to choose from"),
        ("ppo:lam=0.9..0.5", "no LOW..HIGH"),
        ("ppo:lam=0.5..1.5", "lam=1.5 won't do"),
        ("ppo:tau=0.5..1", "has no option 'tau'"),
        ("ppo:whiten=true..false", "no LOW..HIGH"),
        ("ppo:whiten=true|true", "nothing to choose from"),
        ("nobody:tau=1..2", "nobody"),
        ("rebar:tau=0.1..1", "rebar: it isn't among the estimators"),
    ],
)
def test_what_cannot_vary_is_refused(command, tiny, tmp_path, text, said):
    arguments = ("-e", "rloo", "-e", "ppo", "-t", tiny(), "--out", tmp_path / "tuning", "--vary", text)
    status, shown, err = command("tune", *arguments)
    assert (status, shown) == (2, "")
    assert said in err and len(err.splitlines()) == 1, err
    assert not (tmp_path / "tuning" / "trials.csv").exists()


def test_options_are_tuned_along_and_a_run_uses_and_names_them(command, tiny, tmp_path, in_process):
    out, run = tmp_path / "tuning", tmp_path / "run"
    specs = ("-e", "grade", "-e", "rloo", "-t", tiny(), "--steps", "2")
    status, shown, err = command(
        "tune", *specs, "--trials", "3", "--seeds", "1000-1001", "--out", out, "--vary", "grade:tau=0.5..2"
    )
    assert status == 0, err
    trials = pd.read_csv(out / "trials.csv").fillna({"options": ""})
    of = dict(iter(trials.groupby("estimator")))
    assert len(of["grade"]) == len(of["rloo"]) == 6
    assert sorted(of["grade"]["learning_rate"]) == sorted(of["rloo"]["learning_rate"])
    assert set(of["rloo"]["options"]) == {""} and of["grade"]["options"].nunique() == 3
    (task,) = json.loads((out / "tuned.json").read_text())["tasks"].values()
    tau = task["estimators"]["grade"]["options"]["tau"]
    best = of["grade"].groupby(["learning_rate", "options"])["objective"].mean().idxmax()
    assert (task["estimators"]["grade"]["learning_rate"], f"tau={tau}") == best
    assert f"; tau={tau}" in shown

    status, _, err = command("run", *specs, "--seeds", "0-1", "--out", run, "--tuned", out / "tuned.json")
    assert status == 0, err
    assert f"options of grade (of {out / 'tuned.json'}): tau={tau}" in err
    frame = pd.read_parquet(run / "metrics.parquet")
    assert set(frame["estimator"]) == {"grade", "rloo"}  # labels stay, so that claims and comparisons find them
    assert {json.loads(params)["tau"] for params in frame.query("estimator == 'grade'")["estimator_params"]} == {
        float(tau)
    }
    config = json.loads((run / "config.json").read_text())
    (rates,), (options,) = config["learning_rates"].values(), config["tuned_options"].values()
    assert options == {"grade": {"tau": tau}} and rates["grade"] == task["estimators"]["grade"]["learning_rate"]
    assert (run / "curves.csv").read_bytes() == (out / "curves.csv").read_bytes()
    text = (run / "report.html").read_text()
    assert f"tau={tau}" in text and "Other options varied too" in text


def test_rates_can_be_listed(tuned):
    out, _ = tuned("--rates", "0.03,0.01")
    assert set(pd.read_csv(out / "trials.csv")["learning_rate"]) == {0.01, 0.03}


@pytest.mark.parametrize("rates", ["1e-2:1e-3", "0:1", "a:b", "1e-3:inf", "1e-3:1e-2:1e-1", "", "1e-3,1e-3", "1e-3,-1"])
def test_other_rates_are_refused(command, tiny, rates):
    status, shown, err = command("tune", "-t", tiny(), "--rates", rates)
    assert (status, shown) == (2, "")
    assert err.startswith(f"gradebench: --rates {rates}: numbers above 0")


def test_the_reference_trajectory_follows_the_tuned_rate_also_in_an_old_folder(tuned, command, tiny, tmp_path):
    """Its checkpoints have a name by what they depend on, so those of a run without --tuned are not taken for them."""
    out, _ = tuned("--rates", "0.001,0.002,0.003")
    arguments = ("-e", "reinforce", "-t", tiny(), "--steps", "2", "--seeds", "0-1")
    command("run", *arguments, "--out", tmp_path / "both")
    for folder in ("both", "new"):
        status, _, err = command(
            "run", *arguments, "--out", tmp_path / folder, "--tuned", out / "tuned.json", "--fresh"
        )
        assert status == 0, err
    probes = [pd.read_csv(tmp_path / folder / "probes.csv").drop(columns="run_id") for folder in ("both", "new")]
    pd.testing.assert_frame_equal(*probes)


def test_a_failing_estimator_is_said_and_the_others_are_tuned(command, tiny, tmp_path, in_process, no_report):
    out = tmp_path / "tuning"
    specs = (
        "-e",
        "rloo",
        "-e",
        tiny("Raises"),
        "-t",
        tiny(),
        "--trials",
        "2",
        "--seeds",
        "1000-1001",
        "--steps",
        "2",
        "--out",
        out,
    )
    status, shown, err = command("tune", *specs)
    assert status == 1 and "Traceback" not in err
    assert "failed" in shown and "rloo" in shown
    assert "tiny.py:Raises" in err
    (task,) = json.loads((out / "tuned.json").read_text())["tasks"].values()
    assert set(task["estimators"]) == {"rloo"}
