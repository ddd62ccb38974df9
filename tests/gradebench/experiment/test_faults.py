"""What happens to a run when its surroundings fail: one clear line, the right status, and nothing finished lost."""

import json
import random
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from gradebench import InputError
from gradebench.analysis import runs
from gradebench.core.shown import counted
from gradebench.storage.records import METRICS, PROBES, SAMPLES

ROOT = Path(__file__).parents[3]
TIMES = ["seconds", "seconds_per_step", "seconds_per_step_ci_low", "seconds_per_step_ci_high", "peak_memory_bytes"]


@pytest.fixture
def gradebench(command, tiny, in_process):
    """`gradebench run` of two estimators and two seeds into a folder."""
    return lambda out, *more: command(
        "run", "-t", tiny(), "-e", "rloo", "-e", "reinforce", "--seeds", "0-1", "--steps", 2, "--out", out, *more
    )


@pytest.fixture
def finished(gradebench, made_once):
    """A folder with that run, or a copy of it: the command in its config.json may name another folder."""
    return lambda out: made_once("test_faults", out, lambda: gradebench(out))


def board(out):
    return pd.read_csv(out / "leaderboard.csv").drop(columns=TIMES[1:])


def one_line(said, *words):
    status, _, err = said
    last = err.splitlines()[-1]
    assert status == 2 and "Traceback" not in err and last.startswith("gradebench: "), err
    assert all(word in last for word in words), last


def drafts(out):
    return list(out.rglob(".*"))


# --- the disk ---------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path):
    """A file system of some hundred kilobytes; returns its folder, and a function that changes an option of it."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(*options):
        command = ["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", folder]
        return subprocess.run(command, check=False, capture_output=True)

    try:
        if mount("size=400k").returncode:
            pytest.skip("file systems can't be mounted here")
    except FileNotFoundError:
        pytest.skip("there is no mount")
    yield folder, lambda option: mount("remount", option)
    subprocess.run(["umount", "-l", folder], check=True)


def test_a_full_disk_ends_the_run_with_one_line_and_with_room_it_goes_on(gradebench, finished, small_disk, tmp_path):
    folder, remount = small_disk
    out = folder / "run"
    one_line(gradebench(out), "No space left on device")
    assert not drafts(out)
    done = [path for path in out.glob("cells/*/cell.json") if '"ok"' in path.read_text()]
    assert 0 < len(done) < 4
    remount("size=50m")
    status, _, err = gradebench(out)
    assert status == 0 and f"{counted(len(done), 'cell was', 'cells were')} finished by an earlier run and kept" in err
    finished(tmp_path / "run")
    pd.testing.assert_frame_equal(board(out), board(tmp_path / "run"))


def test_a_disk_that_can_only_be_read_is_refused_and_what_is_there_can_be_read(gradebench, small_disk, command):
    folder, remount = small_disk
    remount("size=50m")
    assert gradebench(folder / "run")[0] == 0
    remount("ro")
    one_line(gradebench(folder / "run"), f"can't write into {folder}/run", "--out")
    assert command("status", folder / "run")[0] == command("leaderboard", folder / "run")[0] == 0


# --- the folder -------------------------------------------------------------------------------------------------


def halved(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2 + 3])


def garbled(path):
    path.write_bytes(random.Random(0).randbytes(path.stat().st_size))


def emptied(path):
    path.write_bytes(b"")


def test_damaged_files_are_made_again_and_whole_ones_are_kept(gradebench, tmp_path):
    out = tmp_path / "run"
    gradebench(out)
    whole, config = board(out), (out / "config.json").read_text()
    cells = sorted(path.parent for path in out.glob("cells/*/cell.json"))
    assert len(cells) == 4
    halved(cells[0] / METRICS)
    garbled(cells[1] / PROBES)
    emptied(cells[2] / "cell.json")
    for damage, reference in zip((halved, garbled), sorted(out.glob("cells/*reference*/*")), strict=False):
        damage(reference)
    for name in ("metrics.parquet", "metrics.csv", "config.json", "environment.json", SAMPLES):
        garbled(out / name)
    status, _, err = gradebench(out)
    assert status == 0 and "1 cell was finished by an earlier run and kept" in err
    pd.testing.assert_frame_equal(board(out), whole)
    assert (out / "config.json").read_text() == config
    assert not drafts(out)


def test_a_run_is_refused_while_another_one_has_the_folder_before_anything_is_prepared(command, tiny, tmp_path):
    out = tmp_path / "run"
    hold = "import sys, time, pathlib; from gradebench.storage.files import exclusive_lock\nwith exclusive_lock(pathlib.Path(sys.argv[1])): print(flush=True); time.sleep(600)"
    with subprocess.Popen([sys.executable, "-c", hold, str(out)], stdout=subprocess.PIPE) as holder:
        holder.stdout.readline()
        for name, task in (("run", "Careless"), ("probe", "Careless")):
            one_line(command(name, "-t", tiny(task), "-e", "rloo", "--out", out), f"in use by process {holder.pid}")
        holder.kill()


@pytest.mark.parametrize("damage", [halved, garbled, emptied])
def test_commands_that_read_a_damaged_run_say_so_in_one_line(finished, command, tmp_path, damage):
    out = tmp_path / "run"
    finished(out)
    kept = tmp_path / "kept"
    shutil.copytree(out, kept)
    for name, commands in {
        "metrics.parquet": ("leaderboard", "compare", "claims", "report", "status"),
        "config.json": ("status",),
    }.items():
        damage(out / name)
        for which in commands:
            if (which, name, damage) == ("report", SAMPLES, emptied):
                continue  # a run without samples
            if (which, name) == ("report", SAMPLES):  # beside the tables, it costs itself alone
                status, _, err = command(which, out)
                assert status == 0 and name in err and len(err.splitlines()) == 1
                assert "left out of this report" in (out / "report.html").read_text()
                continue
            one_line(command(which, out), name)
        shutil.copy(kept / name, out / name)
    damage(out / "probes.csv")
    status, _, err = command("merge", out, "--out", tmp_path / "merged")  # beside the tables, it costs itself alone
    assert status == 0 and (tmp_path / "merged" / "metrics.parquet").is_file()
    assert f"{out}/probes.csv is damaged and left out" in " ".join(err.split())


def flipped(path, bit=None):
    content = bytearray(path.read_bytes())
    bit = random.Random(path.name).randrange(8 * len(content)) if bit is None else bit
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def test_a_flipped_bit_of_a_runs_files_is_told_or_changes_nothing(gradebench, command, tmp_path):
    """Of each file in the folder: the tables are refused by name, or they are those of before; a report goes without what
    is damaged, and says so; the run, given again, mends the folder."""
    out = tmp_path / "run"
    gradebench(out)
    files = sorted(path for path in out.iterdir() if path.is_file())
    whole = {path: path.read_bytes() for path in files}
    peace = runs.read_metrics([out])
    told = {"metrics.parquet", "config.json"}
    assert told | {"digests.json", "samples.jsonl", "probes.csv", "environment.json"} < {path.name for path in files}
    for path in files:
        for bit in random.Random(path.name).sample(range(8 * len(whole[path])), 2):
            flipped(path, bit)
            if path.name in told:
                with pytest.raises(InputError, match=re.escape(str(path))):
                    runs.read_metrics([out])
            else:
                pd.testing.assert_frame_equal(runs.read_metrics([out]), peace)
            path.write_bytes(whole[path])
    for name in ("samples.jsonl", "probes.csv"):
        flipped(out / name)
    status, _, err = command("report", out, "--out", tmp_path / "page")
    assert status == 0 and err.count("left out") == 2
    for name in told:
        flipped(out / name)
    one_line(command("leaderboard", out), "has changed since it was written", "digests.json")
    status, _, err = gradebench(out)
    assert status == 0 and f"{out}/config.json is damaged" in err
    timeless = {"config.json", "metrics.csv", "metrics.parquet", "leaderboard.csv", "samples.jsonl", "probes.csv"}
    assert all((out / name).read_bytes() == whole[out / name] for name in timeless)


def test_damaged_cells_that_are_not_asked_for_cost_what_is_damaged(finished, command, tiny, tmp_path):
    out = tmp_path / "run"
    finished(out)
    before = {name: pd.read_csv(out / f"{name}.csv") for name in ("metrics", "probes")}
    cells = sorted(path.parent for path in out.glob("cells/*--reinforce--*/cell.json"))
    flipped(cells[0] / SAMPLES)
    flipped(cells[0] / PROBES)
    flipped(cells[1] / "cell.json")
    status, _, err = command("run", "-t", tiny(), "-e", "rloo", "--seeds", "0-1", "--steps", 2, "--out", out)
    assert status == 0 and "2 cells were finished by an earlier run and kept" in err
    assert f"1 of them stays without damaged files, such as {cells[0]}" in err
    assert f"1 cell is damaged and left out, such as {cells[1].name}" in err
    after = {name: pd.read_csv(out / f"{name}.csv") for name in ("metrics", "probes")}
    gone = {"metrics": [cells[1].name], "probes": [cell.name for cell in cells]}
    for name, table in before.items():
        left = table[~table["cell_id"].isin(gone[name])]
        order = ["cell_id", "step", "metric", "split"] if name == "metrics" else ["cell_id", "step", "metric", "group"]
        one, other = (frame.sort_values(order, ignore_index=True) for frame in (after[name], left))
        pd.testing.assert_frame_equal(one, other)


def test_names_in_a_config_do_not_lead_out_of_the_run(finished, command, tmp_path):
    out = tmp_path / "run"
    finished(out)
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "cell.json").write_text('{"status": "failed", "reason": "the secret"}')
    config = json.loads((out / "config.json").read_text())
    (out / "digests.json").unlink()
    for name in ("../../secret", str(tmp_path / "secret"), ".."):
        (out / "config.json").write_text(json.dumps(config | {"cells": [name, *config["cells"]]}))
        said = command("status", out)
        one_line(said, "config.json", name)
        assert "the secret" not in said[1] + said[2]


# --- the clock --------------------------------------------------------------------------------------------------


def test_a_clock_that_jumps_changes_nothing(gradebench, finished, tmp_path, monkeypatch):
    finished(tmp_path / "one" / "run")
    dice, now = random.Random(0), time.time
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: now() + dice.uniform(-1e6, 1e6))
        status, _, err = gradebench(tmp_path / "two" / "run", "--timeout", "600")
    assert status == 0, err
    pd.testing.assert_frame_equal(board(tmp_path / "one" / "run"), board(tmp_path / "two" / "run"))


# --- everything at once -----------------------------------------------------------------------------------------


@pytest.mark.heavy
def test_a_short_fault_campaign_ends_as_a_run_in_peace():
    """The long one, of 100 kills, is the script itself."""
    script = [sys.executable, str(ROOT / "benchmarks" / "fault_campaign.py"), "--kills", "5", "--most", "1"]
    script += ["--seeds", "1"]
    done = subprocess.run(script, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "5 kills, 0 lost, 0 wrong bytes, 0 faults"
