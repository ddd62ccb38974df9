"""What the command line says about itself: help, version, cards of plugins, and completion in a shell."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import gradebench
from gradebench import cli
from gradebench.cli import completion

PROGRAM = Path(sys.executable).with_name("gradebench")


@pytest.mark.parametrize("width", [60, 80, 200])
def test_every_command_has_its_whole_summary_in_the_help(command, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    status, out, _ = command("--help")
    said = " ".join(out.split())
    assert status == 0 and "..." not in out.partition("Commands:")[2]
    for name, function in cli.COMMANDS.items():
        summary = function.__doc__.partition("\n")[0]
        assert f"{name} {summary}" in said and summary.endswith(".")


@pytest.mark.parametrize("name", [None, *cli.COMMANDS])
def test_h_is_help(command, name):
    words = [name] if name else []
    short, long = command(*words, "-h"), command(*words, "--help")
    assert short == long and short[0] == 0 and "Usage: gradebench" in short[1]


def test_the_version_is_printed(command):
    assert command("--version") == (0, f"gradebench {gradebench.__version__}\n", "")


def test_a_card_has_what_is_known_and_the_commands_to_try_it(command):
    status, out, err = command("show", "rloo")
    assert (status, err) == (0, "")
    assert out.startswith("rloo  (estimator, gradebench ")
    assert "n: int >= 2, default 4" in out and "Kool et al. 2019" in out and "  gradebench check rloo" in out
    status, out, _ = command("show", "polynomial")
    assert status == 0 and "(task, gradebench" in out and "-t polynomial" in out


def test_a_card_of_nothing_is_one_line(command):
    status, out, err = command("show", "rlooo")
    assert (status, out) == (2, "") and "did you mean rloo?" in err and len(err.splitlines()) == 1


def test_the_verbose_list_fits_80_columns(command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("gradebench.reporting.listing.sys.stdout.isatty", lambda: True, raising=False)
    status, out, _ = command("list", "tasks", "-v")
    assert status == 0 and max(map(len, out.splitlines())) <= 80


# --- completion -------------------------------------------------------------------------------------------------


def test_names_are_completed_and_behind_the_colon_options_and_values():
    assert completion.estimators("rein") == ["reinforce", "reinforce-pp", "reinmax"]
    assert completion.estimators("al") == ["all"] and completion.names("enum") == ["enumerable-lm"]
    assert {"imdb:corpus=", "imdb:size=mini", "imdb:kl="} <= set(completion.tasks("imdb:"))
    assert completion.tasks("imdb:size=s") == ["imdb:size=small", "imdb:size=smollm2"]
    assert "imdb:size=mini,kl=" in completion.tasks("imdb:size=mini,")
    assert not any("size" in one.partition(",")[2] for one in completion.tasks("imdb:size=mini,"))
    assert completion.estimators("nothing:") == [] and completion.tasks("imdb:nothing=") == []


@pytest.mark.parametrize(
    ("words", "current", "expected"),
    [
        (["gradebench", "run", "-t", "imdb", ":"], 4, ["gradebench", "run", "-t", "imdb:"]),
        (["gradebench", "run", "-t", "imdb", ":", "size", "=", "s"], 7, ["gradebench", "run", "-t", "imdb:size=s"]),
        (["gradebench", "run", "-e", "rl"], 3, ["gradebench", "run", "-e", "rl"]),
        (["gradebench", "run", "-e", ""], 3, ["gradebench", "run", "-e", ""]),
    ],
)
def test_words_that_bash_cut_are_joined(words, current, expected):
    assert completion.joined(words, current) == (expected, len(expected) - 1)


@pytest.mark.skipif(not shutil.which("bash") or not PROGRAM.exists(), reason="needs bash and the installed command")
@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (["run", "-t", "imdb", ":", "size", "=", "s"], {"small", "smollm2"}),
        (["run", "-e", "reinf"], {"reinforce", "reinforce-pp"}),
        (["sh"], {"show"}),
    ],
)
def test_bash_completes(line, expected):
    """The function that `--show-completion` prints, called as bash calls it."""
    script = subprocess.run(
        [PROGRAM], env=os.environ | {completion.VARIABLE: "source_bash"}, capture_output=True, text=True, check=True
    ).stdout
    words = " ".join(f"'{word}'" for word in [str(PROGRAM), *line])
    script += f"\nCOMP_WORDS=({words}); COMP_CWORD={len(line)}; _gradebench_completion {PROGRAM}"
    script += "\nprintf '%s\\n' \"${COMPREPLY[@]}\""
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == expected
