"""Trackers get the curve of each cell as it ends, and no run ends for one that fails."""

import csv
import sys
import types

import pytest

from gradebench.cli.options import Tracker
from gradebench.core.errors import InputError
from gradebench.experiment.plan import Cell
from gradebench.experiment.runner import Progress
from gradebench.reporting import trackers

CELL = Cell("imdb", "imdb", {}, "rloo", "rloo", 3)
CURVE = {40: {"test/reward": 0.75}, 0: {"test/reward": 0.5, "test/kl": 0.0}}


class Module(types.ModuleType):
    """What wandb and trackio offer, noting each call."""

    def __init__(self, name):
        super().__init__(name)
        self.calls = []
        for one in ("init", "log", "finish"):
            setattr(self, one, lambda *given, one=one, **named: self.calls.append((one, given, named)))


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_cell_is_a_run_of_its_own_with_its_curve_in_order(monkeypatch, tmp_path, name):
    module = Module(name)
    monkeypatch.setitem(sys.modules, name, module)
    trackers.TRACKERS[name](tmp_path / "mine")(CELL, "ok", CURVE)
    facts = {"task": "imdb", "estimator": "rloo", "seed": 3, "status": "ok"}
    assert module.calls == [
        ("init", (), {"project": "gradebench", "name": CELL.id, "config": facts, "group": "mine"}),
        ("log", (CURVE[0],), {"step": 0}),
        ("log", (CURVE[40],), {"step": 40}),
        ("finish", (), {}),
    ]


def test_tensorboard_gets_each_value_at_its_step(monkeypatch, tmp_path):
    written = []

    class SummaryWriter:
        def __init__(self, folder):
            written.append(folder)

        def add_scalar(self, *given):
            written.append(given)

        def add_text(self, *given):
            written.append(given)

        def close(self):
            written.append("closed")

    module = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = SummaryWriter
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    trackers.to_tensorboard(tmp_path)(CELL, "ok", CURVE)
    assert written[0] == str(tmp_path / "tensorboard" / CELL.id) and written[-2:] == [("status", "ok"), "closed"]
    assert written[1:-2] == [("test/reward", 0.5, 0), ("test/kl", 0.0, 0), ("test/reward", 0.75, 40)]


def test_csv_has_a_row_a_value_and_goes_on_in_its_file(tmp_path):
    trackers.to_csv(tmp_path)(CELL, "ok", CURVE)
    trackers.to_csv(tmp_path)(CELL, "failed", {})
    rows = list(csv.DictReader((tmp_path / "log.csv").open(encoding="utf-8")))
    assert [(row["step"], row["metric"], row["value"]) for row in rows[:3]] == [
        ("0", "test/reward", "0.5"),
        ("0", "test/kl", "0.0"),
        ("40", "test/reward", "0.75"),
    ]
    assert len(rows) == 4 and rows[3]["status"] == "failed" and rows[0]["seed"] == "3" and rows[0]["cell_id"] == CELL.id


class Notes(Progress):
    def __init__(self):
        self.notes = []

    def note(self, message):
        self.notes.append(message)


def test_a_tracker_that_fails_is_told_once_and_left_out(monkeypatch, tmp_path):
    def breaks(cell, status, curve):
        raise ConnectionError("no network")

    monkeypatch.setitem(trackers.TRACKERS, "wandb", lambda out: breaks)
    run = types.SimpleNamespace(out=tmp_path, folder=lambda cell: tmp_path / "none")
    progress = trackers.Tracked(Notes(), run, ["wandb", "csv"])
    for _ in range(2):
        progress.advance(CELL, "ok")
    progress.advance(None, "ok")
    (note,) = progress.inner.notes
    assert "--log wandb failed" in note and "no network" in note
    assert len((tmp_path / "log.csv").read_text().splitlines()) == 3


def test_a_tracker_without_its_package_is_one_line(monkeypatch):
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    trackers.require(["csv"])
    with pytest.raises(InputError, match=r"pip install 'gradebench\[wandb\]'"):
        trackers.require(["csv", "wandb"])


def test_the_option_offers_each_tracker():
    assert {one.value for one in Tracker} == set(trackers.TRACKERS)


def test_a_run_logs_its_cells(command, tiny, tmp_path, short):
    out = tmp_path / "r"
    words = ("-t", tiny(), "-e", "rloo", "-e", tiny("NeedsBinary"), "--seeds", "0", "--steps", 2, "--out", out)
    assert command("run", *words, "--log", "csv")[0] == 0
    rows = list(csv.DictReader((out / "log.csv").open(encoding="utf-8")))
    reward = {row["step"]: float(row["value"]) for row in rows if row["metric"] == "test/reward"}
    assert set(reward) == {"0", "2"} and {row["status"] for row in rows} == {"ok", "skipped"}
