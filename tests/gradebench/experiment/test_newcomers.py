"""`run --tune`: who has no tuned rate is tuned by the recorded protocol first, in the run's folder, and then compared."""

import json

import pandas as pd
import pytest

from gradebench.experiment import newcomers


@pytest.fixture
def recorded(monkeypatch, tmp_path, tiny):
    """A tiny task that records a rate of rloo, found on a grid of three rates and two seeds; returns its spec."""
    from pathlib import Path

    source = Path(tiny().rpartition(":")[0]).read_text()
    source += """

class Recorded(TinyTask):
    def tuned(self, estimator):
        facts = {"steps": 2, "setting": "kl=0", "trials": "3 rates x 2 seeds", "grid": [0.01, 0.02, 0.04]}
        return facts | {"seeds": "500-501", "learning_rate": 0.03} if estimator == "rloo" else None
"""
    file = tmp_path / "recorded.py"
    file.write_text(source)
    return f"{file}:Recorded"


def run(command, task, out, *more):
    return command("run", "-t", task, "--steps", "2", "--seeds", "0-2", "--out", out, *more)


def test_newcomers_are_tuned_by_the_recorded_protocol_and_compared(command, recorded, tmp_path, in_process):
    out = tmp_path / "run"
    names = ("-e", "rloo", "-e", "reinforce", "-e", "rloo:n=2,rate-like=rloo")
    status, shown, err = run(command, recorded, out, *names)
    assert status == 0, err
    assert "reinforce ran at the task's own rate" in shown and "gradebench run --tune -e reinforce" in shown
    assert "not comparable" in (out / "tests.csv").read_text()

    out = tmp_path / "tuned"
    status, shown, err = run(command, recorded, out, *names, "--tune")
    assert status == 0, err
    assert "--tune: reinforce on recorded.py:Recorded, by 3 rates x 2 seeds of 2 steps each" in err
    (folder,) = [path for path in (out / "tuning").iterdir() if path.is_dir()]
    trials = pd.read_csv(folder / "trials.csv")
    assert set(trials["estimator"]) == {"reinforce"} and set(trials["seed"]) == {500, 501}
    assert {0.01, 0.02, 0.04} <= set(trials["learning_rate"])  # and what lies beyond an end
    (task,) = json.loads((out / "tuning" / "tuned.json").read_text())["tasks"].values()
    board = pd.read_csv(out / "leaderboard.csv").set_index("estimator")
    assert board.loc["reinforce", "learning_rate"] == task["estimators"]["reinforce"]["learning_rate"]
    assert board.loc["rloo", "learning_rate"] == board.loc["rloo:n=2,rate-like=rloo", "learning_rate"] == 0.03
    assert set(board.loc[["reinforce", "rloo"], "rate_source"]) == {"tuned: 3 rates x 2 seeds at 2 steps"}
    rewards = pd.read_csv(out / "tests.csv").query("metric == 'reward'").set_index(["estimator_a", "estimator_b"])
    fair = {pair: not verdict.startswith("not comparable") for pair, verdict in rewards["verdict"].items()}
    assert {frozenset(pair): value for pair, value in fair.items()} == {
        frozenset({"rloo", "reinforce"}): True,
        frozenset({"rloo", "rloo:n=2,rate-like=rloo"}): True,
        frozenset({"reinforce", "rloo:n=2,rate-like=rloo"}): False,
    }
    text = (out / "report.html").read_text()
    assert "--tune" in text and "tuned: 3 rates x 2 seeds at 2 steps" in text
    assert (out / "curves.csv").is_file()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--tune", "--learning-rate", "0.1"), "--tune would find learning rates that are given already"),
        (("--tune", "--seeds", "501-502"), "--tune: seed 501 is for tuning; compare on other seeds than 500-501"),
    ],
)
def test_what_cannot_be_tuned_is_refused(command, recorded, tmp_path, more, said):
    status, shown, err = run(command, recorded, tmp_path / "run", "-e", "reinforce", *more)
    assert (status, shown) == (2, "") and said in err.splitlines()[-1]
    assert not (tmp_path / "run" / "tuning").exists()


def test_a_dry_run_says_what_would_be_tuned_and_tunes_nothing(command, recorded, tmp_path):
    status, shown, err = run(
        command, recorded, tmp_path / "run", "-e", "reinforce", "-e", "rloo", "--tune", "--dry-run"
    )
    assert status == 0 and "reinforce on recorded.py:Recorded, by 3 rates x 2 seeds of 2 steps" in err
    assert len(shown.splitlines()) == 6 and not (tmp_path / "run").exists()
    status, _, err = run(command, recorded, tmp_path / "run", "-e", "rloo", "--tune", "--dry-run")
    assert status == 0 and "all estimators have tuned rates already" in err


def test_without_a_record_the_protocol_is_that_of_tune():
    class Bare:
        learning_rate = 0.01

        def tuned(self, estimator):
            return None

    rates, seeds = newcomers.protocol(Bare(), ["rloo"])
    assert (rates[0], rates[-1], len(rates), seeds) == (0.001, 0.1, 6, "1000-1004")
