"""Whatever stdout is, a command ends as it does otherwise, with the same files, and never in a traceback."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from gradebench import cli

SCRIPT = Path(__file__).with_name("every_command.py")


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """By command and kind of stdout, how it ended."""
    words = [sys.executable, str(SCRIPT), str(tmp_path_factory.mktemp("every"))]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = {}
    for name, one in json.loads(done.stdout).items():
        command, kind = name.split(", ")
        found.setdefault(command, {})[kind] = one
    return found


def tables(files):
    return [name for name in files if "/cells/" not in name]


@pytest.mark.heavy
def test_every_command_ends_alike_whatever_stdout_is(ended):
    for command, kinds in ended.items():
        for kind, one in kinds.items():
            status = 2 if command == "refused" or kind == "full" else 0
            assert (one["status"], "Traceback" in one["stderr"]) == (status, False), (command, kind, one)
            assert one["files"] == kinds["closed"]["files"] or command in ("run", "tune", "probe"), (command, kind)
            assert tables(one["files"]) == tables(kinds["closed"]["files"]), (command, kind)  # that tell times in part
            if status == 2:
                assert one["stderr"].count("gradebench: ") == 1, (command, kind)
            if kind in ("ascii", "latin-1"):
                assert bool(one["stdout"]) == bool(kinds["plain"]["stdout"]) == (command != "refused"), (command, kind)


@pytest.mark.heavy
def test_json_is_all_that_is_on_stdout_however_a_plugin_prints(ended):
    for command in ("check --json", "list --json"):
        for kind in ("plain", "ascii", "latin-1"):
            assert json.loads(ended[command][kind]["stdout"])
    assert ended["check --json"]["plain"]["stderr"].count("chatter") == 15  # five ways: read, made, and at the end


def test_no_command_is_left_out():
    words = [command for command, _ in runpy.run_path(str(SCRIPT))["COMMANDS"].values()]
    named = {one.name or one.callback.__name__ for one in cli.app.registered_commands}
    assert named == {command[0] for command in words} - {"--help"}
