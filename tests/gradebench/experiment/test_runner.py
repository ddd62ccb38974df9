"""A whole run with cells in this process: what it writes, what it keeps, and what it refuses."""

import json

import pandas as pd
import pytest

from gradebench.analysis import tables
from gradebench.core import schema
from gradebench.core.errors import InputError
from gradebench.core.interrupts import Interrupted
from gradebench.experiment import cells, preparing, runner
from gradebench.storage.formats import read_lines
from gradebench.storage.records import METRICS_COLUMNS, SAMPLES

TIMINGS = ["seconds", "seconds_per_step", "seconds_per_step_ci_low", "seconds_per_step_ci_high", "peak_memory_bytes"]
MINE = """
import torch
from gradebench import Estimate, Estimator

class Mine(Estimator):
    def gradient(self, problem, rng):
        {first}
        return Estimate([torch.ones_like(p) for p in problem.params])
"""


@pytest.fixture
def run(tiny, tmp_path, in_process):
    """Prepare and execute a run of the tiny task."""

    def call(*estimators, out="run", progress=None, **keywords):
        keywords = {"seeds": "0-1", "steps": 2, "draws": 4, "checkpoints": 2} | keywords
        request = runner.Request(estimators or ["reinforce"], [tiny()], out=str(tmp_path / out), **keywords)
        progress = progress or runner.Progress()
        return runner.execute(request, runner.prepare(request, progress), progress)

    return call


@pytest.fixture
def two(run, made_once, tmp_path):
    """A finished run of reinforce and rloo, in the folder `run`."""
    return made_once("test_runner", tmp_path / "run", lambda: run("reinforce", "rloo"))


@pytest.fixture
def mine(tmp_path):
    """Write the user's own estimator; returns its spec."""

    def write(first="pass"):
        (tmp_path / "mine.py").write_text(MINE.format(first=first))
        return f"{tmp_path}/mine.py:Mine"

    return write


def statuses(outcome):
    return outcome.metrics.groupby(["estimator", "seed"])["status"].first().to_dict()


# --- what a run writes ------------------------------------------------------------------------------------------


def test_a_run_writes_its_tables_with_exactly_the_fixed_columns(two, tmp_path):
    outcome, out = two, tmp_path / "run"
    written = {path.name for path in out.iterdir()}
    files = {"config.json", "digests.json", "environment.json"}
    files |= {"metrics.parquet", "metrics.csv", "tests.csv", "leaderboard.csv", "training.parquet"}
    assert written == files | {"probes.csv", "budgets.csv", "crossings.csv", SAMPLES, "cells"}
    metrics = pd.read_csv(out / "metrics.csv")
    assert list(metrics) == schema.METRICS_TABLE.names == list(pd.read_parquet(out / "metrics.parquet"))
    assert list(pd.read_csv(out / "tests.csv")) == schema.TESTS_COLUMNS
    probes = pd.read_csv(out / "probes.csv")
    assert list(probes) == schema.PROBES_COLUMNS and set(probes["run_id"]) == {"run"}
    assert set(probes["step"]) == {0, 2} and set(probes["draws"]) == {4} and set(probes["along"]) == {"reference"}
    assert len(probes) == 2 * 2 * 2 * probes["metric"].nunique() == len(outcome.probes)
    board = pd.read_csv(out / "leaderboard.csv")
    assert list(board) == schema.LEADERBOARD_COLUMNS
    assert set(board["estimator"]) == {"reinforce", "rloo"} and set(board["status"]) == {"ok"}
    assert outcome.complete and set(metrics["run_id"]) == {"run"}


def test_a_run_says_what_it_ran_and_where(run, tmp_path):
    run("reinforce", learning_rate=0.5)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["seeds"] == [0, 1] and len(config["cells"]) == 2
    assert config["tasks"] == {"tiny.py:TinyTask": {"setting": "kl=0"}}
    assert config["learning_rates"] == {"tiny.py:TinyTask": {"reinforce": 0.5}}
    environment = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert environment["device"] == "cpu" and environment["packages"]["torch"]


def test_the_same_seeds_give_the_same_leaderboard_elsewhere(run, tmp_path):
    """Byte for byte, but for the columns of clock and memory."""
    boards = []
    for out in ("one", "two"):
        run("reinforce", "rloo", "ppo", "rebar", out=out, seeds="0-1")
        board = pd.read_csv(tmp_path / out / "leaderboard.csv", dtype=str, keep_default_na=False)
        boards.append(board.drop(columns=TIMINGS[1:]).to_csv())
    assert boards[0] == boards[1]


# --- resuming ---------------------------------------------------------------------------------------------------


def test_resuming_keeps_finished_cells_and_adds_new_seeds(run):
    first = run(seeds="0-1")
    again = run(seeds="0-2")
    assert (first.reused, again.reused) == (0, 2)
    assert statuses(again) == {("reinforce", seed): "ok" for seed in range(3)}
    assert run(seeds="0-2", resume=False).reused == 0


def test_a_resumed_cell_has_the_numbers_of_the_first_run(run):
    first, again = (run().metrics for _ in range(2))
    pd.testing.assert_frame_equal(first, again, check_exact=True)


def test_a_part_of_a_larger_run_never_shrinks_it_and_others_add_to_it(two, run, tmp_path):
    whole = two
    part = run("rloo", seeds="1")
    assert part.reused == 1 and part.complete
    order = [name for name in METRICS_COLUMNS if name != "value"]
    left, right = (one.metrics.sort_values(order, ignore_index=True) for one in (whole, part))
    pd.testing.assert_frame_equal(left, right, check_exact=True)
    pd.testing.assert_frame_equal(whole.leaderboard, part.leaderboard)
    run("grade", seeds="0-2")
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["seeds"] == [0, 1, 2] and len(config["cells"]) == len(set(config["cells"])) == 7
    (rates,) = config["learning_rates"].values()
    assert set(rates) == set(pd.read_csv(tmp_path / "run" / "leaderboard.csv")["estimator"])
    assert {"reinforce", "rloo", "grade"} == set(rates)
    assert len(pd.read_csv(tmp_path / "run" / "probes.csv")["cell_id"].unique()) == 7


def test_cells_of_an_earlier_command_that_was_interrupted_stay_in_the_tables(run):
    run(seeds="0-2", progress=interrupting(1))
    found = statuses(run("rloo", seeds="0"))
    assert found == {
        ("reinforce", 0): "ok",
        ("reinforce", 1): "interrupted",
        ("reinforce", 2): "interrupted",
        ("rloo", 0): "ok",
    }


def test_more_steps_extend_the_trainings_of_a_folder_to_those_of_one_in_one_piece(run):
    run("rloo", steps=2, control=True)
    notes = []
    progress = runner.Progress()
    progress.note = notes.append
    longer = run("rloo", steps=5, control=True, progress=progress)
    whole = run("rloo", steps=5, control=True, out="whole")
    assert "4 trainings go on from their last step" in notes
    left, right = (one.metrics[~one.metrics["metric"].isin(TIMINGS)] for one in (longer, whole))
    pd.testing.assert_frame_equal(left.assign(run_id="-"), right.assign(run_id="-"), check_exact=True)


def test_cells_that_would_be_left_behind_by_more_steps_are_named(run):
    run("rloo", seeds="0-1")
    with pytest.raises(InputError, match=r"1 cell of .* with steps 2, here 3 \(name their estimators and seeds too"):
        run("rloo", seeds="0", steps=3)


def test_policies_that_are_asked_for_later_come_from_the_kept_trainings(run, tiny, monkeypatch, tmp_path):
    monkeypatch.setattr("gradebench.experiment.preparing.saves", lambda task: True)
    run("rloo", seeds="0")
    monkeypatch.setattr("gradebench.experiment.harness._save_policy", lambda task, folder: folder.mkdir())
    assert run("rloo", seeds="0", save_policies=True).reused == 0
    assert run("rloo", seeds="0", save_policies=True).reused == 1


def test_resuming_computes_failed_cells_anew_and_drops_their_traces(run, mine, tmp_path):
    failed = run("rloo", mine("raise ValueError('not yet')"))
    assert not failed.complete and set(failed.reasons.values()) == {"failed: ValueError: not yet (mine.py, line 7)"}
    assert len(list(tmp_path.glob("run/cells/*/error.txt"))) == 2
    mended = run("rloo", mine())
    assert mended.reused == 2 and mended.complete and not mended.reasons
    assert not list(tmp_path.glob("run/cells/*/error.txt"))


def test_editing_an_estimators_file_computes_its_cells_anew(run, mine):
    run("rloo", mine("pass"))
    assert run("rloo", mine("pass")).reused == 4
    edited = mine("problem.ledger")
    with pytest.raises(
        InputError, match=r"2 cells of .* with source of mine.py:Mine \w{12}, here \w{12}; give --fresh"
    ):
        run("rloo", edited)
    outcome = run(edited, resume=False)  # what isn't asked for stays
    assert outcome.reused == 0 and len(statuses(outcome)) == 4
    assert run("rloo", edited).reused == 4


@pytest.mark.parametrize("change", [{"steps": 1}, {"batch": 16}, {"learning_rate": 0.5}, {"clip": 0.1}, {"draws": 6}])
def test_cells_of_other_settings_are_refused_or_made_anew_and_never_mixed(two, run, change):
    first = two
    with pytest.raises(InputError, match=r"run has finished cells that this would discard: .*; give --fresh"):
        run(**change)
    assert run("reinforce", "rloo").metrics.equals(first.metrics)
    outcome, fresh = run(resume=False, **change), run(out="fresh", **change)
    assert outcome.reused == 0
    left, right = (one.metrics[~one.metrics["metric"].isin(TIMINGS)] for one in (outcome, fresh))
    pd.testing.assert_frame_equal(left.assign(run_id="-"), right.assign(run_id="-"), check_exact=True)


# --- what goes wrong in the middle ------------------------------------------------------------------------------


def interrupting(after):
    """Progress during which the user presses Ctrl-C once that many cells have ended."""

    class Interrupting(runner.Progress):
        ended = 0

        def advance(self, cell, status):
            self.ended += cell is not None
            if self.ended == after:
                raise Interrupted

    return Interrupting()


def test_an_interrupted_run_has_tables_of_what_is_done_and_can_go_on(run, tmp_path):
    outcome = run(seeds="0-2", progress=interrupting(1))
    assert outcome.interrupted and not outcome.complete
    assert [statuses(outcome)["reinforce", seed] for seed in range(3)] == ["ok", "interrupted", "interrupted"]
    board = pd.read_csv(tmp_path / "run" / "leaderboard.csv")
    assert board["status"].tolist() == ["ok 1, interrupted 2"]
    resumed = run(seeds="0-2")
    assert resumed.reused == 1 and resumed.complete


def test_cells_of_an_earlier_run_do_not_pose_as_those_of_an_interrupted_one(run, monkeypatch):
    run(steps=2)

    def interrupt(*arguments):
        raise Interrupted

    monkeypatch.setattr(cells, "_reference", interrupt)
    outcome = run(steps=3)
    assert outcome.interrupted
    assert set(statuses(outcome).values()) == {"interrupted"}


def test_cells_train_without_probes_where_the_reference_fails_and_are_computed_again_later(run, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(cells, "_reference", lambda *_: ("failed", "too steep"))
        outcome = run()
    assert outcome.unprobed == {"tiny.py:TinyTask": "too steep"} and not outcome.complete
    assert set(statuses(outcome).values()) == {"ok"}
    assert set(outcome.metrics["phase"]) == {"train", "evaluation"}
    assert list(outcome.probes) == schema.PROBES_COLUMNS and outcome.probes.empty
    later = run()
    assert later.reused == 0 and later.complete
    assert "probe" in set(later.metrics["phase"])


def test_a_reference_that_is_lost_once_is_tried_again(run, monkeypatch):
    reference, calls = cells._reference, []

    def lost_at_first(*arguments):
        calls.append(arguments[-1])
        return ("failed", "its process was killed by signal 9") if len(calls) == 1 else reference(*arguments)

    monkeypatch.setattr(cells, "_reference", lost_at_first)
    outcome = run()
    assert calls == [0, 1, 0, 1, 0]  # both checkpoints of both seeds, and the lost one again
    assert outcome.complete and not outcome.unprobed


def test_statuses_of_all_kinds_are_rows_of_the_leaderboard(run, tiny):
    outcome = run("reinforce", tiny("Nan"), tiny("Raises"), tiny("NeedsBinary"), seeds="0")
    found = outcome.leaderboard.set_index("estimator")["status"].to_dict()
    assert found == {
        "reinforce": "ok",
        "tiny.py:Nan": "diverged 1",
        "tiny.py:Raises": "failed 1",
        "tiny.py:NeedsBinary": "skipped 1",
    }


# --- what is refused --------------------------------------------------------------------------------------------


def test_two_files_of_one_name_are_not_taken_for_one_estimator(run, mine, tmp_path):
    spec = mine()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.py").write_text(MINE.format(first="problem.ledger"))
    with pytest.raises(InputError, match=r"two different estimators are called mine.py:Mine"):
        run(spec, f"{tmp_path}/other/mine.py:Mine")


def test_one_estimator_asked_for_twice_runs_once(run):
    assert len(run("rloo", "rloo:n=4", seeds="0").leaderboard) == 1


def test_all_leaves_out_what_cannot_be_loaded_and_says_why(run, monkeypatch):
    resolve = preparing.registry.resolve

    def broken(kind, spec):
        if spec == "grade":
            raise InputError("estimator grade of somebody 1.0 can't be imported")
        return resolve(kind, spec)

    monkeypatch.setattr(preparing.registry, "resolve", broken)
    resolved, left_out = runner.expand("estimators", ["all"])
    assert left_out == {"grade": "estimator grade of somebody 1.0 can't be imported"}
    assert {"rloo", "reinforce", "ppo"} <= {one.name for one in resolved}


def test_preparing_a_run_leaves_no_folder(tiny, tmp_path):
    request = runner.Request(["reinforce"], [tiny()], out=str(tmp_path / "a" / "b"))
    runner.prepare(request, runner.Progress())
    assert not (tmp_path / "a").exists()


# --- control ----------------------------------------------------------------------------------------------------


def test_a_control_trains_every_estimator_twice_with_other_draws_and_ranks_it_once(run, tmp_path):
    plain = run("rloo", "reinforce", out="plain")
    outcome = run("rloo", "reinforce", out="control", control=True)
    pd.testing.assert_frame_equal(
        outcome.leaderboard.drop(columns=TIMINGS[1:]),
        plain.leaderboard.drop(columns=TIMINGS[1:]),
    )
    rewards = tables.controls(outcome.metrics).query("metric == 'reward'")
    assert list(rewards["estimator_b"]) == [f"{name}{tables.CONTROL}" for name in rewards["estimator_a"]]
    assert set(rewards["estimator_a"]) == {"rloo", "reinforce"}
    assert (rewards["mean_difference"] != 0).all()
    assert not outcome.metrics.query("phase == 'probe'")["estimator"].str.endswith(tables.CONTROL).any()
    written = pd.read_csv(tmp_path / "control" / "controls.csv")
    assert list(written.columns) == schema.TESTS_COLUMNS
    assert len(written) == len(outcome.controls)


def test_an_aa_control_starts_where_its_estimator_does(run):
    metrics = run("rloo", control=True).metrics
    first = metrics.query("phase == 'evaluation' and step == 0").pivot_table(
        index=["seed", "split", "metric"], columns="estimator", values="value"
    )
    assert (first["rloo"] == first[f"rloo{tables.CONTROL}"]).all()


# --- samples ----------------------------------------------------------------------------------------------------


def test_samples_of_all_cells_stand_in_one_file_before_and_after_training(two, tmp_path):
    rows = pd.DataFrame(read_lines(tmp_path / "run" / SAMPLES))
    assert len(rows) == 2 * 2 * 3 * 2 * 2  # estimators, seeds, splits, steps, prompts
    assert set(rows["step"]) == {0, 2}
    before = rows[rows["step"] == 0].groupby(["seed", "split", "number"])["text"].nunique()
    assert (before == 1).all()  # the same noise for every estimator of a seed
    assert all(text.startswith(prompt[:-1]) for prompt, text in zip(rows["prompt"], rows["text"], strict=True))


def test_a_resumed_run_keeps_its_samples(run, tmp_path):
    run("rloo")
    first = (tmp_path / "run" / SAMPLES).read_bytes()
    run("rloo")
    assert (tmp_path / "run" / SAMPLES).read_bytes() == first
