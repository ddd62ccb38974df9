"""Whatever an estimator does, its cell ends with a row that says how, and the cells after it are what they would have been."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from gradebench.core.shown import utf8
from gradebench.experiment import cell_files, harness, references
from gradebench.experiment.plan import Cell, Plan
from gradebench.storage import records

FILE = Path(__file__).with_name("behaves.py")
behaves = SimpleNamespace(**runpy.run_path(str(FILE)))
FEW = {"deadline": None, "database": None, "derandomize": True, "phases": [Phase.explicit, Phase.generate]}
EASY = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
STATUSES = {"ok", "failed", "diverged", "skipped", "oom"}
# Gradients that can be used: those that aren't finite are left out and counted.
FINE = {"plain", "tuple", "generator", "nan", "inf", "huge", "tiny", "zero", "graph", "parameters", "doubles", "halves"}
TIMES = ["seconds", "seconds_per_step", "seconds_per_step_ci_low", "seconds_per_step_ci_high", "peak_memory_bytes"]


@pytest.fixture
def ran(tmp_path, tiny):
    """Runs one estimator's cell; returns its cell.json and its rows but for seconds and memory."""
    shared = {"run_id": "run", "out": str(tmp_path), "device": "cpu", "steps": 2, "batch": 4, "learning_rate": 0.02}
    plan = Plan(**shared, checkpoints=1, probe_draws=4, warm_up=1, reference_draws=2, evaluations=1)

    def call(spec, own=False):
        foreign = (tiny().partition(":")[0], "" if own else str(FILE))
        cell = Cell("tiny", tiny(), {"kl": 0.0}, spec, spec, 0, foreign=foreign)
        if not cell_files.checkpoint_file(plan, cell, 0).is_file():
            references.reference_cell(plan, cell, 0)
        said = harness.run_cell(plan, cell, "key", {"task": {}, "estimator": {}})
        folder = tmp_path / "cells" / cell.id
        ended = records.read_ended(folder)
        assert (ended["status"], ended["reason"]) == (said[0], utf8(said[1]))
        rows = records.read_rows(folder / records.METRICS).to_pandas()
        return ended, rows[~rows["metric"].isin(TIMES)].drop(columns="cell_id").reset_index(drop=True)

    return call


@pytest.mark.filterwarnings("ignore")  # of torch, about what it is given
@settings(suppress_health_check=EASY, **FEW)
@example("plain", "no info", "no loss", "nothing", "gradient")
@example("plain", "no info", "no loss", "learns", "gradient")
@given(*(st.sampled_from(list(words)) for words in behaves.DOES), st.sampled_from(["init", "reset", "gradient"]))
def test_whatever_an_estimator_does_its_cell_ends_and_others_are_as_before(ran, grad, info, loss, act, when):
    if "before" not in vars(ran):
        ran.before = ran("rloo", own=True)[1]
    ended, rows = ran(f"{FILE}:Behaves:does={grad}/{info}/{loss}/{act},when={when}")
    assert ended["status"] in STATUSES and len(rows)
    assert "\n" not in ended["reason"] and bool(ended["reason"]) == (ended["status"] != "ok" or "part" in ended["key"])
    assert set(rows["status"]) == {ended["status"]}
    if grad not in FINE:
        assert ended["status"] != "ok", f"{grad} gradients were taken for what they aren't"
    if (grad, info, loss, act) == ("plain", "no info", "no loss", "nothing"):
        assert (ended["status"], ended["reason"]) == ("ok", "")
    assert ran("rloo", own=True)[1].equals(ran.before)
