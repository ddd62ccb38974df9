"""What `gradebench doctor` finds: nothing bad on this machine, and each thing that would stop a run."""

from dataclasses import replace

import pytest

from gradebench import doctor
from gradebench.plugins.registry import entries


@pytest.fixture(autouse=True)
def quiet(monkeypatch, tmp_path):
    """A hub that answers, and folders of our own."""
    monkeypatch.setattr(doctor, "hub_refusal", lambda path, seconds: None)
    monkeypatch.setenv("GRADEBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def found(subject):
    return [(finding.state, finding.detail) for finding in doctor.findings() if finding.subject == subject]


def test_nothing_is_bad_where_all_is_well(command, tmp_path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "weights").write_bytes(bytes(3_000_000))
    status, out, _ = command("doctor")
    assert status == 0
    lines = [line.split() for line in out.splitlines()]
    assert {words[1] for words in lines} >= {"versions", "device", "estimators", "tasks", "cache", "results", "hub"}
    assert "hub cache" in out
    assert all(words[0] in ("ok", "note") for words in lines)
    assert "holds 3 MB" in out
    assert not (tmp_path / "results").exists()


def test_a_hub_out_of_reach_is_a_note(monkeypatch):
    monkeypatch.setattr(doctor, "hub_refusal", lambda path, seconds: "no answer")
    ((state, detail),) = found("hub")
    assert state == "note" and detail.startswith("no answer") and "embedded" in detail


def test_a_broken_plugin_is_bad_with_its_reason(monkeypatch, command):
    def with_broken(kind):
        broken = replace(next(iter(entries(kind).values())), name="mine", problem="no module named gone", builtin=False)
        return entries(kind) | {"mine": broken}

    monkeypatch.setattr(doctor, "entries", with_broken)
    status, out, _ = command("doctor")
    assert status == 1
    assert "mine of gradebench" in out and "no module named gone" in out


def test_a_cache_below_a_file_is_bad(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("GRADEBENCH_CACHE", str(tmp_path / "file" / "cache"))
    ((state, detail),) = found("cache")
    assert state == "bad" and "GRADEBENCH_CACHE" in detail


def test_a_full_disk_is_noted(monkeypatch):
    monkeypatch.setattr(doctor, "LITTLE_SPACE", float("inf"))
    assert {state for subject in ("cache", "results") for state, _ in found(subject)} == {"note"}


def test_a_missing_package_is_bad(monkeypatch):
    facts = {"python": "3.11.7", "packages": {"torch": "2.13.0", "pyarrow": None}}
    monkeypatch.setattr(doctor, "environment", lambda device: facts)
    assert ("bad", "not installed: pyarrow; pip install gradebench again") in found("versions")


def test_an_extra_that_is_not_installed_is_noted_with_its_name(monkeypatch):
    found_spec = doctor.importlib.util.find_spec
    monkeypatch.setattr(
        doctor.importlib.util, "find_spec", lambda name: None if name in ("ray", "submitit") else found_spec(name)
    )
    said = " ".join(detail for state, detail in found("extras") if state == "note")
    assert "gradebench[ray]" in said and "gradebench[slurm]" in said
