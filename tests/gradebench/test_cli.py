"""What the command line says: one clear line and status 2 for bad input, and tables on stdout only."""

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

NAN_REVIEW = "a film of many words "


@pytest.fixture
def refused(command, tmp_path, monkeypatch):
    """Run a command that must be refused with one line on stderr and nothing left behind; returns that line."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    def call(*arguments):
        status, out, err = command("run", *arguments)
        assert status == 2, err
        assert out == ""
        assert "Traceback" not in err
        assert len(err.splitlines()) == 1 and err.startswith("gradebench: "), err
        assert not list(Path().iterdir())
        return err

    return call


# --- bad input --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["-e", "reinforse"], ["'reinforse'", "did you mean reinforce", "gradebench list estimators"]),
        (["-t", "imbd"], ["'imbd'", "imdb", "gradebench list tasks"]),
        (["-e", "rloo:k=4"], ["no option 'k'", "n (int >= 2, default 4)"]),
        (["-e", "rloo:n=one"], ["n=one won't do", "int >= 2"]),
        (["-e", "rloo:n=1"], ["n=1 won't do", "int >= 2"]),
        (["-e", "grade:tau=nan"], ["tau=nan won't do", "float > 0"]),
        (["-e", "rloo:n"], ["'n' isn't key=value"]),
        (["-t", "imdb:size=huge"], ["size=huge won't do", "auto, mini, small"]),
        (["--seeds", "3-1"], ["--seeds 3-1", "0-9"]),
        (["--seeds", "a-b"], ["--seeds a-b", "0-9"]),
        (["--seeds", ""], ["--seeds", "nothing"]),
        (["--steps", "0"], ["--steps 0: at least 1"]),
        (["--batch", "0"], ["--batch 0: at least 1"]),
        (["--jobs", "0"], ["--jobs 0: at least 1"]),
        (["--timeout", "0"], ["--timeout 0: a number above 0"]),
        (["--timeout", "-1"], ["--timeout -1: a number above 0"]),
        (["--learning-rate", "-1"], ["--learning-rate -1: a number above 0"]),
        (["--learning-rate", "nan"], ["--learning-rate nan: a number above 0"]),
        (["--device", "toaster"], ["--device 'toaster'", "auto, cpu and cuda"]),
        (["--device", "meta"], ["--device 'meta'", "auto, cpu and cuda"]),
        (["-e", "nowhere.py:Mine"], ["nowhere.py", "No such file"]),
        (["--batch", "6", "-e", "rloo"], ["rloo takes 4 samples a prompt", "--batch 6"]),
        (["--batch", "4", "-e", "ppo:minibatches=8"], ["estimator ppo:minibatches=8", "4 contexts", "8 minibatches"]),
    ],
)
def test_a_request_that_cannot_be_used_is_one_line(refused, tiny, arguments, said):
    task = [] if "-t" in arguments else ["-t", tiny()]
    estimator = [] if "-e" in arguments else ["-e", "reinforce"]
    line = refused(*arguments, *task, *estimator)
    assert all(words in line for words in said), line


def test_a_device_that_is_not_there_is_one_line(refused, tiny, monkeypatch):
    def no_driver(*arguments, **keywords):
        raise RuntimeError("Found no NVIDIA driver\nand more")

    monkeypatch.setattr("torch.empty", no_driver)
    line = refused("-t", tiny(), "-e", "reinforce", "--device", "cuda")
    assert "--device cuda can't be used: Found no NVIDIA driver; try --device auto" in line


@pytest.mark.parametrize(
    ("content", "said"),
    [("class Other: ...", "has no object 'Mine'; it defines Other"), ("def (", "SyntaxError"), ("1 / 0", "by zero")],
)
def test_a_file_without_the_estimator_is_one_line(refused, tiny, tmp_path, content, said):
    (tmp_path / "mine.py").write_text(content)
    assert said in refused("-t", tiny(), "-e", f"{tmp_path}/mine.py:Mine")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("FailsToBuild", "estimator tiny.py:FailsToBuild can't be used: ZeroDivisionError"),
        (
            "FailsToInit",
            "estimator tiny.py:FailsToInit can't be used: RuntimeError: no room for the value head (tiny.py",
        ),
    ],
)
def test_an_estimator_that_fails_to_build_is_one_line_with_the_place(refused, tiny, name, said):
    assert said in refused("-t", tiny(), "-e", tiny(name))


def test_a_task_that_fails_to_prepare_is_one_line_with_the_place(refused, tiny):
    line = refused("-t", tiny("Careless"), "-e", "reinforce")
    assert "task tiny.py:Careless can't be used: RuntimeError: the disk of the task is full (tiny.py, line" in line


def test_a_folder_below_a_file_is_refused_before_the_task_is_prepared(refused, tiny, tmp_path):
    (tmp_path / "file").write_text("in the way")
    for out in ("file", "file/below"):
        line = refused("-t", tiny("Careless"), "-e", "reinforce", "--out", tmp_path / out)
        assert f"can't write into {tmp_path}/{out}" in line and "--out" in line


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("none.csv", None, "No such file"),
        ("empty.csv", b"", "empty.csv"),
        ("columns.csv", b"words,stars\ngood film,9\n", "lacks a column"),
        ("one.csv", "\n".join(["text,label", *(f"{NAN_REVIEW}{i},1" for i in range(200))]).encode(), "the label 1"),
        ("latin.csv", b"text,label\ncaf\xe9,1\n", "isn't UTF-8"),
        ("reviews.docx", b"x", "unknown suffix"),
    ],
)
def test_a_corpus_that_cannot_be_used_is_one_line(refused, tmp_path, name, content, said):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    line = refused("-t", f"imdb:corpus={path}", "-e", "reinforce")
    assert name in line and said in line, line


def test_a_cache_that_cannot_be_written_is_one_line(refused, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("GRADEBENCH_CACHE", str(tmp_path / "file"))
    line = refused("-t", "imdb:corpus=embedded", "-e", "reinforce")
    assert f"can't write into the cache {tmp_path}/file" in line and "GRADEBENCH_CACHE" in line


@pytest.mark.parametrize("arguments", [["run", "--stepz", "3"], ["run", "--steps", "x"], ["walk"], ["list", "seeds"]])
def test_a_misspelt_option_or_command_is_a_usage_error(command, arguments):
    status, out, err = command(*arguments)
    assert (status, out) == (2, "") and "Traceback" not in err
    assert arguments[-1] in err or arguments[-2] in err


# --- what goes where --------------------------------------------------------------------------------------------


def test_a_dry_run_lists_its_cells_on_stdout_and_writes_nothing(command, tiny, tmp_path):
    status, out, err = command(
        "run", "-t", tiny(), "-e", "rloo", "--seeds", "0-2", "--dry-run", "--out", tmp_path / "run"
    )
    assert status == 0 and len(out.splitlines()) == 3
    assert all(line.startswith("tiny.py_TinyTask--rloo--s") for line in out.splitlines())
    assert "1 estimators x 3 seeds" in err
    assert not (tmp_path / "run").exists()


def test_the_leaderboard_is_on_stdout_and_the_rest_on_stderr(command, tiny, tmp_path, in_process):
    status, out, err = command(
        "run", "-t", tiny(), "-e", "rloo", "--seeds", "0-1", "--steps", 2, "--out", tmp_path / "r"
    )
    assert status == 0
    assert "rloo" in out and "[kl=0]" in out and f"tables: {tmp_path}/r/leaderboard.csv" in out
    assert "learning rates" in err and "learning rates" not in out
    assert "\x1b" not in out + err  # neither colours nor a bar that is drawn anew


def test_a_failed_cell_ends_in_status_1_with_its_reason_and_the_tables(command, tiny, tmp_path, in_process):
    status, out, err = command(
        "run", "-t", tiny(), "-e", "rloo", "-e", tiny("Raises"), "--seeds", "0", "--steps", 1, "--out", tmp_path / "r"
    )
    assert status == 1
    assert "failed: ArithmeticError: the third law of the estimator" in err and "Traceback" not in err
    board = pd.read_csv(tmp_path / "r" / "leaderboard.csv").set_index("estimator")["status"]
    assert board.to_dict() == {"rloo": "ok", "tiny.py:Raises": "failed 1"}
    assert "tiny.py:Raises" in out


def test_a_skipped_cell_is_no_failure(command, tiny, tmp_path, in_process):
    estimators = ["-e", "rloo", "-e", tiny("NeedsBinary")]
    assert command("run", "-t", tiny(), *estimators, "--seeds", "0", "--steps", 1, "--out", tmp_path / "r")[0] == 0


# --- processes of their own -------------------------------------------------------------------------------------


def script(*arguments, **keywords):
    code = "from gradebench.cli import main; main()"
    return subprocess.run([sys.executable, "-c", code, *arguments], check=False, stderr=subprocess.PIPE, **keywords)


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["list"], ["list", "tasks", "--json"]])
def test_help_and_list_do_not_import_torch(arguments):
    code = (
        f"import sys; sys.argv = ['gradebench', *{arguments}]\n"
        "from gradebench.cli import main\n"
        "try: main()\n"
        "except SystemExit as ended: assert not ended.code\n"
        "heavy = {'torch', 'pandas', 'transformers', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout


@pytest.mark.parametrize("arguments", [["list"], ["--help"]])
def test_a_reader_that_has_gone_is_no_error(arguments):
    """As in `gradebench list | head -1`, with the reader gone before the first byte."""
    reading, writing = os.pipe()
    os.close(reading)
    done = script(*arguments, stdout=writing)
    os.close(writing)
    assert done.stderr == b""


def test_a_hub_out_of_reach_is_one_line_if_strict(tmp_path):
    environment = os.environ | {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "hub")}
    done = script("run", "-e", "rloo", "--strict", stdout=subprocess.PIPE, cwd=tmp_path, env=environment)
    assert done.returncode == 2 and done.stdout == b""
    lines = done.stderr.decode().splitlines()
    assert len(lines) == 1 and "127.0.0.1:9" in lines[0], lines
    assert not (tmp_path / "results").exists()
