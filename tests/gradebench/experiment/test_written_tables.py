"""A run's tables are what the dictionary of `gradebench.core.schema` declares."""

import json

import pandas as pd
import pytest

import gradebench
from gradebench.core import schema
from gradebench.experiment import runner


@pytest.fixture
def out(tiny, tmp_path, in_process, made_once):
    """The folder of a run of two estimators and one that is skipped."""
    folder = tmp_path / "run"

    def make():
        estimators = ["reinforce", "rloo", "rloo:n=3"]
        request = runner.Request(estimators, [tiny()], "0-1", out=str(folder), steps=2, draws=4, checkpoints=2)
        runner.execute(request, runner.prepare(request, runner.Progress()), runner.Progress())

    made_once("test_written_tables", folder, make)
    return folder


def names_in(path):
    """The columns of a table, or the entries of an object or of the first line of JSON."""
    if path.suffix == ".parquet":
        return list(pd.read_parquet(path))
    if path.suffix == ".csv":
        return list(pd.read_csv(path))
    text = path.read_text(encoding="utf-8")
    return list(json.loads(text.partition("\n")[0] if path.suffix == ".jsonl" else text))


def test_a_run_writes_the_declared_tables_with_exactly_their_columns(out):
    declared = {name: table for table in schema.TABLES for name in table.file.split(", ")}
    written = {path.name for path in out.iterdir()} - {"cells", "digests.json"}
    assert written <= set(declared) and len(written) > 8
    for name in written:
        found, columns = names_in(out / name), declared[name].names
        if name.endswith(".json"):
            assert set(found) <= set(columns), name
        else:
            assert [one for one in found if not one.startswith("info_")] == [n for n in columns if n != "info_NAME"], (
                name
            )


def test_every_row_says_what_made_it_and_in_which_direction_it_is_better(out):
    metrics = pd.read_parquet(out / "metrics.parquet")
    ran = metrics[metrics["status"] == "ok"]
    for name, unit in zip(ran["metric"], ran["unit"], strict=True):
        assert unit == schema.METRICS[name].unit
    assert set(metrics["steps"]) == {2} and set(metrics["batch"]) == {8} and set(ran["reason"]) == {""}
    assert set(metrics["version"]) == {gradebench.__version__}
    assert metrics["date"].str.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC").all()
    probes = pd.read_csv(out / "probes.csv")
    assert set(probes["parameters"]) == {"all"} and probes["group"].isna().all()


def test_the_reason_of_a_skip_is_in_the_metrics(out):
    metrics = pd.read_parquet(out / "metrics.parquet")
    skipped = metrics[metrics["estimator"] == "rloo:n=3"]
    assert set(skipped["status"]) == {"skipped"} and len(skipped) == 2
    assert skipped["reason"].str.contains("does not divide --batch 8").all()


def test_tests_have_unit_direction_and_winner(out):
    tests = pd.read_csv(out / "tests.csv", keep_default_na=False)
    pair = tests[~tests["estimator_b"].str.contains("n=3")].set_index("metric")
    assert pair.loc["gradient_variance", ["unit", "better"]].tolist() == ["ln", "lower"]
    assert pair.loc["reward", ["unit", "better", "winner"]].tolist() == ["1", "higher", ""]  # two seeds decide nothing
