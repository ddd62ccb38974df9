"""What a command prints arrives, or is dropped, but never ends it: closed descriptors, gone readers, any encoding."""

import gc
import io
import os
import subprocess
import sys

import pytest

from gradebench.checks import conformance
from gradebench.core.errors import InputError
from gradebench.core.streams import make_ready
from gradebench.experiment import cells
from gradebench.storage import cache
from gradebench.storage.records import SAMPLES

TEXT = "bias² 漢字 é \udcff"
SAYS = f"""
import sys
from gradebench.core.streams import make_ready
make_ready()
kept = open(sys.argv[1], "w")
for i in range(3):
    print({TEXT!r})
    print({TEXT!r}, file=sys.stderr, flush=True)
kept.write(f"fd {{kept.fileno()}} whole")
"""


def said(tmp_path, redirections="", encoding="utf-8"):
    command = f'"{sys.executable}" -c "$1" "$2" {redirections}'
    environment = os.environ | {"PYTHONIOENCODING": encoding} if encoding else os.environ
    words = ["bash", "-c", command, "-", SAYS, str(tmp_path / "kept")]
    done = subprocess.run(words, env=environment, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "kept").read_text().endswith(" whole")
    return done.stdout


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8", "utf-16", "ascii:strict"])
def test_what_an_encoding_lacks_is_an_escape(tmp_path, encoding):
    name = encoding.partition(":")[0]
    line = TEXT.encode(name, "backslashreplace").decode(name)
    assert said(tmp_path, encoding=encoding).decode(name).splitlines() == [line] * 3


@pytest.mark.parametrize("redirections", [">&-", ">&- 2>&-", "<&- >&- 2>&-", "| true", "2>&1 | head -1"])
def test_closed_or_gone_is_no_error_and_no_file_takes_its_place(tmp_path, redirections):
    said(tmp_path, f"{redirections}; exit ${{PIPESTATUS[0]}}")
    assert int((tmp_path / "kept").read_text().split()[1]) > 2


def test_what_a_plugin_prints_is_no_part_of_the_answer(command, monkeypatch):
    def report(spec, seed):
        print("chatter")
        return {"estimator": spec, "passed": True}

    monkeypatch.setattr(conformance, "report", report)
    status, out, err = command("check", "--json", "rloo")
    assert (status, out, err) == (0, '{\n  "estimator": "rloo",\n  "passed": true\n}\n', "chatter\n")


def test_an_error_is_one_line_whatever_it_names(command, tmp_path):
    status, _, err = command("leaderboard", tmp_path / "a\nb\u2028c\x1b[31m")
    assert status == 2 and len(err.splitlines()) == 1 and "a\\nb\\u2028c\\x1b[31m" in err


def test_without_a_home_the_variable_is_named(monkeypatch):
    def nowhere():
        raise RuntimeError("Could not determine home directory.")

    for name in ("GRADEBENCH_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pathlib.Path.home", nowhere)
    with pytest.raises(InputError, match="set GRADEBENCH_CACHE"):
        cache.cache_root()


def test_texts_of_a_cell_that_cannot_be_read_cost_themselves(tmp_path):
    notes = []
    (tmp_path / SAMPLES).write_bytes(b'{"text": "a"}\n{"text": \n')
    assert cells._texts(tmp_path / SAMPLES, notes.append) == []
    assert len(notes) == 1 and str(tmp_path / SAMPLES) in notes[0] and "left out" in notes[0]


def test_a_user_whom_nobody_knows_is_a_file_that_is_not_there(command):
    status, _, err = command("run", "-e", "~nobody-here/mine.py:Mine", "-t", "bernoulli-toy", "--dry-run")
    assert status == 2 and len(err.splitlines()) == 1 and "No such file" in err


def test_a_stream_that_nobody_else_holds_goes_on_after_it_was_made_ready(tmp_path, monkeypatch):
    """The wrapper that is replaced would close the file beneath both if it went."""
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, io.TextIOWrapper(open(tmp_path / name, "wb")))  # noqa: SIM115
    make_ready()
    gc.collect()
    print("here", flush=True)
    print("and here", file=sys.stderr, flush=True)
    assert [(tmp_path / name).read_text() for name in ("stdout", "stderr")] == ["here\n", "and here\n"]
