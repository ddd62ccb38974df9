"""What `gradebench list` prints, and what it doesn't import."""

import json
import os
import re
import subprocess
import sys
from typing import Annotated

import pytest

from gradebench.core.errors import InputError
from gradebench.core.options import Range, options_of
from gradebench.plugins.registry import Entry
from gradebench.reporting import listing


def draw(problem, rng, *, n: Annotated[int, Range(2), "samples"] = 4):
    return n


def noisy():
    print("noise of an import")


CARD = {"family": "of [draws]", "formula": "first line,\nsecond line"}
SUMMARY = "A summary of [brackets] that is " + "very " * 40 + "long."
SOUND = Entry(
    "estimators", "sound", "m:S", "dist", "1.2", True, SUMMARY, True, ("binary", "support"), options_of(draw), CARD
)
UNKNOWN = Entry("estimators", "unknown", "m:U", "dist", "1.2", False, "Unknown.")
BROKEN = Entry("estimators", "broken", "m:B", "other", "0.3", False, problem="there is no module m")
TASK = Entry("tasks", "toy[red]", "m:T", "dist", "1.2", True, "A toy.", unbiased=True)


@pytest.fixture
def registered(monkeypatch):
    """Replace the registry by the entries above."""
    by_kind = {"estimators": [BROKEN, SOUND, UNKNOWN], "tasks": [TASK]}
    monkeypatch.setattr(listing, "entries", lambda kind: {entry.name: entry for entry in by_kind[kind]})
    monkeypatch.setattr(listing, "collisions", lambda kind: [])
    monkeypatch.setattr(listing, "installed", lambda: True)


def test_piped_text_is_aligned_and_never_cut(registered, capsys):
    listing.print_listing(None)
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "estimators  from       unbiased  needs           summary",
        "broken      other 0.3                            BROKEN: there is no module m",
        f"sound       dist 1.2   yes       binary support  {SUMMARY}",
        "unknown     dist 1.2                             Unknown.",
        "",
        "tasks     from      summary",
        "toy[red]  dist 1.2  A toy.",
    ]


def test_one_kind_is_listed_alone(registered, capsys):
    listing.print_listing("tasks")
    assert capsys.readouterr().out.splitlines() == ["tasks     from      summary", "toy[red]  dist 1.2  A toy."]


def test_a_terminal_gets_a_table_with_all_of_the_text(registered, capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "70")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    listing.print_listing(None)
    printed = capsys.readouterr().out
    assert "\x1b[1m" in printed  # bold titles
    printed = re.sub(r"\x1b\[[\d;]*m", "", printed)
    assert max(map(len, printed.splitlines())) <= 70
    words = " ".join(printed.split())
    assert "toy[red]" in words and "[brackets]" in words and words.count("very") == 40
    assert "BROKEN: there is no module" in words


def test_the_document_has_the_same_and_the_options(registered, capsys):
    listing.print_listing(None, as_json=True)
    document = json.loads(capsys.readouterr().out)
    broken, sound, unknown = document["estimators"]
    assert (broken["status"], broken["problem"]) == ("broken", "there is no module m")
    assert (sound["status"], sound["unbiased"], sound["needs"]) == ("ok", True, ["binary", "support"])
    assert (sound["distribution"], sound["version"], sound["builtin"]) == ("dist", "1.2", True)
    assert sound["summary"] == SUMMARY
    assert sound["options"] == [options_of(draw)["n"].as_json()]
    assert sound["card"] == CARD and unknown["card"] == {}
    assert (unknown["unbiased"], unknown["needs"], unknown["options"]) == (None, None, None)
    assert document["tasks"][0]["name"] == "toy[red]" and "needs" not in document["tasks"][0]
    assert document["warnings"] == []


def test_verbose_text_has_the_options_of_the_import(registered, capsys, monkeypatch):
    def fake_load(kind, name):
        noisy()
        if name == "unknown":
            raise InputError("unknown can't be imported: OSError: no")
        return type("Plugin", (), {"factory": staticmethod(draw)})

    monkeypatch.setattr(listing, "load", fake_load)
    listing.print_listing("estimators", verbose=True)
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert lines[3:7] == [
        "    family: of [draws]",
        "    formula: first line,",
        "        second line",
        "    n: int >= 2, default 4 (samples)",
    ]
    assert lines[7].endswith("BROKEN: unknown can't be imported: OSError: no")
    assert "noise" not in captured.out and "noise" in captured.err


def test_collisions_are_warned_of_and_in_the_document(registered, capsys, monkeypatch):
    monkeypatch.setattr(listing, "collisions", lambda kind: [f"a loser among the {kind}"])
    with pytest.warns(UserWarning, match="a loser among the tasks"):
        listing.print_listing("tasks", as_json=True)
    assert json.loads(capsys.readouterr().out)["warnings"] == ["a loser among the tasks"]


def test_without_an_installation_the_remedy_goes_to_stderr(registered, capsys, monkeypatch):
    monkeypatch.setattr(listing, "installed", lambda: False)
    listing.print_listing("tasks", as_json=True)
    captured = capsys.readouterr()
    assert "pip install -e ." in captured.err
    json.loads(captured.out)


@pytest.mark.parametrize("as_json", [False, True])
def test_listing_imports_no_heavy_package(as_json):
    code = (
        f"import sys; from gradebench.reporting.listing import print_listing; print_listing(None, as_json={as_json});"
        "heavy = ('torch', 'transformers', 'datasets', 'pandas', 'numpy', 'scipy', 'rich');"
        "print([name for name in heavy if name in sys.modules], file=sys.stderr)"
    )
    environment = os.environ | {"PYTHONWARNINGS": "ignore"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stderr.strip() == "[]"
    assert "rloo" in done.stdout
