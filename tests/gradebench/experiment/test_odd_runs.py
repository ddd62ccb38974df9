"""Every command on runs that are not as one would wish: the right answer or a plain refusal, and never a silent NaN."""

import functools
import json
import re

import numpy as np
import pandas as pd
import pytest

from gradebench.analysis import tables
from gradebench.core import schema

CLAIMS = """
[[claim]]
id = "c"
says = "a is better than b"
source = "here, 2026"
task = "imdb"
a = "a"
b = "b"
metric = "reward"
form = "difference"
at_least = 0.0
"""


def run_of(rewards, status="ok", rewards_only=False):
    """The metrics of a run: rewards[estimator][seed] is the test reward at the end."""
    rows = []
    for name, by_seed in rewards.items():
        for seed, reward in by_seed.items():
            cell = {"run_id": "run", "cell_id": f"{name}-{seed}", "task": "imdb", "setting": "s", "estimator": name}
            cell |= {"estimator_params": "{}", "estimator_source": "here", "seed": seed, "unit": "", "status": status}
            places = [
                ("evaluation", split, step, metric, value)
                for step in (0, 4)
                for split in ("train", "test")
                for metric, value in (("reward", reward if step else 0.4), ("gold_reward", 0.4), ("kl", 0.5))
            ]
            if rewards_only:
                places = [place for place in places if place[1] == "test" and place[3] == "reward"]
            places += [
                ("probe", "train", 0, f"gradient_{one}", 1.0)
                for one in ("variance", "norm_squared")
                if not rewards_only
            ]
            places += [("train", "train", 4, "seconds_per_step", 0.1)]
            names = ("phase", "split", "step", "metric", "value")
            rows += [cell | dict(zip(names, place, strict=True)) for place in places]
    return pd.DataFrame(rows, columns=schema.METRICS_COLUMNS)


def rewards_of(*names, seeds=range(8), gap=0.1, spread=0.01):
    rng = np.random.default_rng(0)
    return {name: {seed: 0.5 + gap * i + spread * rng.normal() for seed in seeds} for i, name in enumerate(names)}


def without(rewards, **lost):
    return {name: {s: r for s, r in mine.items() if s not in lost.get(name, ())} for name, mine in rewards.items()}


def with_value(rewards, name, seed, value):
    return rewards | {name: rewards[name] | {seed: value}}


FULL = rewards_of("a", "b", "c")
ODD = {
    "unequal seeds": run_of(without(FULL, a=(0, 1), c=(7,))),
    "no seed in common": run_of(without(FULL, a=(0, 1, 2, 3), b=(4, 5, 6, 7), c=(0, 1, 2, 3))),
    "a NaN": run_of(with_value(FULL, "b", 3, np.nan)),
    "an infinity": run_of(with_value(FULL, "b", 3, np.inf)),
    "all NaN": run_of({"a": dict.fromkeys(range(8), np.nan), "b": FULL["b"]}),
    "all ties": run_of(rewards_of("a", "b", "c", gap=0.0, spread=0.0)),
    "one seed": run_of(rewards_of("a", "b", "c", seeds=[0])),
    "two seeds": run_of(rewards_of("a", "b", "c", seeds=[0, 1])),
    "one estimator": run_of(rewards_of("a")),
    "one estimator, one seed": run_of(rewards_of("a", seeds=[0])),
    "all failed": run_of(FULL, status="failed"),
    "a hundred estimators": run_of(
        rewards_of("a", "b", *map(str, range(98)), seeds=range(6), gap=0.001), rewards_only=True
    ),
}
REFUSED = {
    "rows twice": (pd.concat([ODD["one seed"], ODD["one seed"].iloc[:1]]), "comes twice"),
    "no seed id": (ODD["one seed"].assign(seed=None), "no seed"),
    "two sets of parameters": (
        pd.concat([ODD["one seed"], ODD["one seed"].assign(seed=1, estimator_params='{"k": 2}')]),
        "different parameters",
    ),
}
COMMANDS = {
    "leaderboard": lambda run, out: ("leaderboard", run, "--csv", out / "table.csv"),
    "compare": lambda run, out: ("compare", run, "--csv", out / "table.csv"),
    "compare a b": lambda run, out: ("compare", run, "a", "b", "--csv", out / "table.csv"),
    "claims": lambda run, out: ("claims", run, "--claims", out / "claims.toml", "--csv", out / "table.csv"),
    "report": lambda run, out: ("report", run, "--out", out / "report"),
    "power": lambda run, out: ("run", "-e", out / "abc.py:a", "-e", out / "abc.py:b", "--power", run),
    "merge": lambda run, out: ("merge", run, "--out", out / "merged"),
}
ALONE, NOBODY, NO_POWER = "fewer than two estimators", "it has none to compare", "test rewards of two seeds or more"
REFUSALS = {  # of what has no answer
    "compare": dict.fromkeys(["one estimator", "one estimator, one seed", "all failed", "all NaN"], ALONE),
    "compare a b": dict.fromkeys(["one estimator", "one estimator, one seed", "all failed"], NOBODY),
    "power": dict.fromkeys(
        ["no seed in common", "all NaN", "one seed", "one estimator", "one estimator, one seed"], NO_POWER
    )
    | {"all failed": NO_POWER},
}
CASES = [
    (what, odd)
    for what in COMMANDS
    for odd in ODD
    if odd != "a hundred estimators" or what not in ("compare", "compare a b", "merge")  # the leaderboard's tables
]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "claims.toml").write_text(CLAIMS)
    (tmp_path / "abc.py").write_text("def a(problem, rng): ...\n\n\ndef b(problem, rng): ...\n")
    (tmp_path / "run").mkdir()
    config = {"cells": [], "request": {}, "plans": {"imdb": {"steps": 4}}}
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    return tmp_path


def answer(command, folder, what, metrics):
    if what == "power":
        metrics = metrics.assign(estimator=metrics["estimator"].replace({"a": "abc.py:a", "b": "abc.py:b"}))
    tables.write_parquet(metrics, folder / "run" / "metrics.parquet")
    return command(*COMMANDS[what](folder / "run", folder))


@pytest.mark.parametrize(("what", "odd"), CASES)
def test_an_odd_run_is_answered_or_refused(command, folder, what, odd):
    status, out, err = answer(command, folder, what, ODD[odd])
    if refusal := REFUSALS.get(what, {}).get(odd):
        assert (status, out) == (2, "") and refusal in err and len(err.splitlines()) == 1, err
        return
    assert status == 0, err
    pages = [path.read_text() for path in folder.rglob("report.html")]
    shown = out + "".join(re.sub(r"(?s)<script>.*?</script>", "", page) for page in pages)  # whose code may say NaN
    assert not re.search(r"\b(nan|NaN|inf|None|<NA>)\b", shown)
    for path in folder.rglob("table.csv"):
        require_reasons(pd.read_csv(path))


def require_reasons(table):
    """No number is missing but where the row says why."""
    for row in table.to_dict("records"):
        if "rank" in row:
            assert (row["n_seeds"] > 0) == (not pd.isna(row["test_reward_mean"])) == (not pd.isna(row["rank"]))
            assert row["n_seeds"] > 0 or row["status"] != "ok"
            assert row["n_seeds"] < 2 or not pd.isna(row["test_reward_ci_low"])
        elif "p_holm" in row:
            assert (row["n_pairs"] > 0 and row["verdict"] != tables.SAME) == (not pd.isna(row["p_holm"]))
            assert not pd.isna(row["p_holm"]) or row["verdict"] in ("underpowered", "untested", tables.SAME)
            assert row["n_pairs"] < 2 or not pd.isna(row["ci_low"])
        assert all(value != "" for value in row.values())


@functools.cache
def board_of(odd):
    metrics = ODD[odd]
    tests = tables.comparisons(metrics)
    return tables.leaderboard(metrics, tests).set_index("estimator"), tests.query("metric == 'reward'")


def test_seeds_that_one_side_lacks_are_left_out():
    board, tests = board_of("unequal seeds")
    assert board["n_seeds"].to_dict() == {"c": 7, "b": 8, "a": 6}
    pairs = {(row.estimator_a, row.estimator_b): row.n_pairs for row in tests.itertuples()}
    assert pairs == {("c", "b"): 7, ("c", "a"): 5, ("b", "a"): 6}


@pytest.mark.parametrize("odd", ["a NaN", "an infinity"])
def test_a_seed_without_a_number_is_counted_and_left_out(odd):
    board, tests = board_of(odd)
    assert board.loc["b", "status"] == "ok 7, no test reward 1" and board.loc["a", "status"] == "ok"
    assert sorted(tests["n_pairs"]) == [7, 7, 8]
    assert board.loc["b", "test_reward_mean"] == pytest.approx(np.mean([FULL["b"][s] for s in range(8) if s != 3]))


def test_all_ties_are_one_tier():
    board, tests = board_of("all ties")
    assert set(board["tier"]) == {1} and set(tests["p_value"]) == {1.0} and set(tests["effect_size"]) == {0.0}
    assert set(tests["verdict"]) == {tables.SAME} and set(tests["family"]) == {0}
    assert set(board["letters"]) == {"a"} and sorted(board["same_as"]) == ["", "a", "a"]


@pytest.mark.parametrize("odd", ["one seed", "two seeds", "no seed in common", "a hundred estimators"])
def test_too_few_pairs_are_underpowered_and_one_tier(odd):
    board, tests = board_of(odd)
    assert set(board["tier"]) == {1}
    few = tests[tests["n_pairs"] < 6] if odd != "a hundred estimators" else tests
    assert len(few) and set(few["verdict"]) == {"underpowered"}


def test_a_hundred_estimators_are_ranked():
    board, tests = board_of("a hundred estimators")
    assert list(board["rank"]) == list(range(1, 101)) and len(tests) == 4950
    assert board["test_reward_mean"].is_monotonic_decreasing


@pytest.mark.parametrize("odd", REFUSED)
@pytest.mark.parametrize("what", COMMANDS)
def test_what_cannot_be_trusted_is_refused(command, folder, what, odd):
    metrics, said = REFUSED[odd]
    status, out, err = answer(command, folder, what, metrics)
    assert (status, out) == (2, "")
    assert said in err and len(err.splitlines()) == 1, err
