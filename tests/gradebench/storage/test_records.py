"""Files of a run: cells that are finished or not, names, and folders that can be written."""

import json
import math
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest

from gradebench.core.errors import InputError
from gradebench.core.schema import METRICS_COLUMNS, PROBES_COLUMNS
from gradebench.measurement.gradient_metrics import Interval
from gradebench.storage import formats, records
from gradebench.storage.records import SAMPLES


@pytest.fixture
def record():
    return records.CellRecord(records.Identity("run", "cell", "task", "setting", "rloo", "{}", "gradebench 0", 3))


def test_a_row_has_the_fixed_columns_and_the_unit_of_its_metric(record):
    record.add("evaluation", "test", 5, {"kl": 2, "my_own_metric": 1.5})
    frame = record.frame("ok")
    assert list(frame) == METRICS_COLUMNS
    assert frame[["split", "step", "metric", "value", "unit", "status", "seed"]].to_numpy().tolist() == [
        ["test", 5, "kl", 2.0, "nats/sequence", "ok", 3],
        ["test", 5, "my_own_metric", 1.5, "", "ok", 3],
    ]


PLACE = {"along": "own", "step": 7, "draws": 40, "samples": 16, "group": "blocks.0"}


def test_a_probe_has_the_fixed_columns_its_place_and_its_interval(record):
    record.add_probe(PLACE, {"gradient_variance": Interval(2.0, 1.5, 3.0), "my_own": Interval(1.0, math.nan, math.nan)})
    frame = record.probe_frame()
    assert list(frame) == PROBES_COLUMNS
    assert frame[list(PLACE)].to_numpy().tolist() == [list(PLACE.values())] * 2
    assert frame[["metric", "value", "ci_low", "ci_high", "unit"]].iloc[0].tolist() == [
        *("gradient_variance", 2.0, 1.5, 3.0, "1/theta^2")
    ]
    assert frame["unit"][1] == "" and math.isnan(frame["ci_low"][1])
    assert record.rows == []  # the tidy table has rows of its own


def test_a_cell_without_probes_has_an_empty_table_and_no_file(record, tmp_path):
    assert list(record.probe_frame()) == PROBES_COLUMNS and record.probe_frame().empty
    records.write_cell(tmp_path, "key", record.frame("ok"), "ok", "", record.probe_frame())
    assert not (tmp_path / "probes.arrow").exists()
    record.add_probe(PLACE, {"gradient_variance": Interval(2.0, 1.5, 3.0)})
    records.write_cell(tmp_path, "key", record.frame("ok"), "ok", "", record.probe_frame())
    pd.testing.assert_frame_equal(pd.read_feather(tmp_path / "probes.arrow"), record.probe_frame())


def test_a_cell_that_measured_nothing_keeps_a_row(record):
    frame = record.frame("failed")
    assert len(frame) == 1 and math.isnan(frame["value"][0])
    assert frame["status"].tolist() == ["failed"] and frame["setting"].tolist() == ["setting"]


SAMPLE = {"prompt": "a", "text": "ab", "reward": 1.0}


@pytest.fixture
def finished(record, tmp_path):
    """Write a cell with rows, probes and samples."""

    def write(status="ok", key="key"):
        record.add("train", "train", 1, {"reward_calls": 8})
        record.add_probe(PLACE, {"gradient_variance": Interval(2.0, 1.5, 3.0)})
        parts = (record.frame(status), status, "reason", record.probe_frame(), [SAMPLE])
        records.write_cell(tmp_path, key, *parts)
        return tmp_path

    return write


@pytest.mark.parametrize("status", ["ok", "skipped"])
def test_a_finished_cell_comes_back_as_it_was_written(record, finished, status):
    folder = finished(status)
    assert records.is_finished(folder, "key")
    rows = records.merged([folder / "metrics.arrow"], "run", METRICS_COLUMNS)
    pd.testing.assert_frame_equal(rows, record.frame(status))
    probes = records.merged([folder / "probes.arrow"], "run", PROBES_COLUMNS)
    pd.testing.assert_frame_equal(probes, record.probe_frame())


@pytest.mark.parametrize("status", ["failed", "timeout", "diverged", "interrupted", "oom"])
def test_a_cell_that_did_not_end_well_is_not_finished(finished, status):
    assert not records.is_finished(finished(status), "key")


def test_a_cell_of_another_key_or_no_cell_is_not_finished(finished, tmp_path):
    assert not records.is_finished(finished(), "another")
    assert not records.is_finished(tmp_path / "nowhere", "key")


@pytest.mark.parametrize("name", ["metrics.arrow", "probes.arrow", SAMPLES])
def test_a_cell_with_a_file_that_was_cut_changed_or_lost_is_not_finished(finished, name):
    path = finished() / name
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:-1] + bytes([whole[-1] ^ 1]), b"", None):
        path.unlink()
        if damaged is not None:
            path.write_bytes(damaged)
        assert not records.is_finished(path.parent, "key")
        path.write_bytes(whole)
        assert records.is_finished(path.parent, "key")


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"key": "key"}', '{"key": "key", "status": "ok"}', "\x00" * 40, "3"]
)
def test_a_cell_with_a_garbled_end_is_not_finished(finished, content):
    folder = finished()
    (folder / records.ENDED).write_text(content)
    assert not records.is_finished(folder, "key")


def test_a_cells_end_names_no_file_outside_its_folder(finished, tmp_path):
    folder = finished()
    facts = json.loads((folder / records.ENDED).read_text())
    facts["files"]["../secret"] = facts["files"].pop("metrics.arrow")
    (folder / records.ENDED).write_text(json.dumps(facts))
    assert not records.is_finished(folder, "key")


def test_a_damaged_file_of_lines_is_refused_with_its_name(tmp_path):
    for content in (b"{", b"[1]", b"3", b"\xff\xfe", b"{}\n\x00\n"):
        (tmp_path / SAMPLES).write_bytes(content)
        with pytest.raises(InputError, match=r"samples\.jsonl can't be (read|used)"):
            formats.read_lines(tmp_path / SAMPLES)


def test_cell_ids_are_safe_folder_names_that_differ():
    labels = ["rloo", "rloo:n=2", "rloo:n=2,a=b", "../../etc", "a/b", "A" * 300, "A" * 301, "x y", "ß.py:É"]
    ids = [records.cell_id("imdb:corpus=/some/where", label, seed) for label in labels for seed in (0, 1)]
    assert len(set(ids)) == len(ids)
    assert all(len(name) < 120 and set("/\\ :").isdisjoint(name) and not name.startswith(".") for name in ids)


def test_json_is_replaced_whole(tmp_path):
    path = tmp_path / "facts.json"
    formats.write_json(path, {"b": 1, "a": tmp_path})
    assert json.loads(path.read_text()) == {"a": str(tmp_path), "b": 1}
    with pytest.raises(ValueError):
        formats.write_json(path, {"loop": (loop := [])} | {"self": loop.append(loop) or loop})
    assert json.loads(path.read_text())["b"] == 1
    assert [item.name for item in tmp_path.iterdir()] == ["facts.json"]


def test_a_folder_is_tried_out_and_nothing_is_left(tmp_path):
    records.require_writable(tmp_path / "a" / "b" / "c")
    assert not list(tmp_path.iterdir())
    (tmp_path / "there").mkdir()
    records.require_writable(tmp_path / "there")
    assert [item.name for item in tmp_path.iterdir()] == ["there"]


def test_a_folder_that_cannot_be_written_is_refused_with_its_name(tmp_path):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "below" / "it"):
        with pytest.raises(InputError, match=f"can't write into {folder}: .*--out"):
            records.require_writable(folder)
    assert [item.name for item in tmp_path.iterdir()] == ["file"]


def test_the_environment_names_versions_and_machine():
    found = records.environment("cpu")
    assert found["packages"]["gradebench"] and found["packages"]["torch"] and found["processor"]
    assert "gpu" not in found and json.dumps(found)
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC", found["date"])


def test_the_environment_names_the_commit_of_a_checkout_and_none_without_git(monkeypatch, tmp_path):
    if (Path(records.__file__).parents[2] / ".git").exists() and shutil.which("git"):
        assert re.fullmatch(r"[0-9a-f]{12}( \+ changes)?", records.environment("cpu")["commit"])
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "commit" not in records.environment("cpu")


@pytest.mark.parametrize(
    ("fixed", "date"),
    [("0", "1970-01-01 00:00 UTC"), ("86400", "1970-01-02 00:00 UTC"), ("soon", "20"), ("9" * 40, "20")],
)
def test_the_date_of_a_run_can_be_fixed(monkeypatch, fixed, date):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", fixed)
    assert records.environment("cpu")["date"].startswith(date)
