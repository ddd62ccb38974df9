"""The Python interface gives what the command line gives."""

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

import gradebench
from gradebench import InputError
from gradebench.api import spec_of
from gradebench.estimators.score_function import Rloo

SMALL = "enumerable-lm:vocabulary=3,horizon=2,layers=1,width=4"


@pytest.fixture
def finished(in_process, tiny, tmp_path, made_once):
    out = tmp_path / "run"
    return made_once(
        "test_api", out, lambda: gradebench.run(["rloo", "reinforce"], tiny(), seeds=3, steps=2, out=out, quiet=True)
    )


def test_a_run_has_the_tables_and_the_report_of_its_folder(finished, tmp_path):
    board = pd.read_csv(tmp_path / "run" / "leaderboard.csv")
    for column in ("rank", "estimator", "steps"):
        assert finished.leaderboard[column].tolist() == board[column].tolist()
    assert finished.leaderboard["test_objective_mean"].tolist() == pytest.approx(board["test_objective_mean"].tolist())
    assert len(finished.tests) == len(pd.read_csv(tmp_path / "run" / "tests.csv"))
    assert len(finished.probes) == len(pd.read_csv(tmp_path / "run" / "probes.csv"))
    assert set(finished.metrics["seed"]) == {0, 1, 2} and finished.complete
    assert (tmp_path / "run" / "report.html").is_file()


def test_a_folder_is_read_back_as_the_run_that_made_it(finished, tmp_path):
    again = gradebench.load(tmp_path / "run")
    pd.testing.assert_frame_equal(again.leaderboard, finished.leaderboard)
    pair = again.compare("reinforce", "rloo")
    assert set(pair["estimator_a"]) == {"reinforce"} and set(pair["estimator_b"]) == {"rloo"}
    assert set(again.compare()["metric"]) == {"objective"}
    assert set(again.curves()["axis"]) == {"steps"}
    assert set(again.claims()["verdict"]) == {"untested"}
    assert list(again.crossings("rloo", "reinforce")["estimator_a"]) == ["rloo"]
    table, areas = again.frontier()
    assert set(table["metric"]) == {"reward"} and set(areas["metric"]) <= {"reward"}
    assert again.report(tmp_path / "page", plots=True) == tmp_path / "page" / "report.html"


def test_it_shows_itself_in_a_notebook_and_a_console(finished):
    html = finished._repr_html_()
    assert "<table" in html and "reinforce" in html and "NaN" not in html
    assert "reinforce" in repr(finished)


def test_a_class_of_a_file_runs_under_its_spec(in_process, tiny, tmp_path):
    results = gradebench.run([Rloo], tiny(), seeds=[4], steps=1, out=tmp_path / "own", quiet=True)
    assert results.metrics["estimator"].unique().tolist() == ["score_function.py:Rloo"]
    assert set(results.metrics["seed"]) == {4}


def test_gradients_alone_are_probed(in_process, tiny, tmp_path):
    probes = gradebench.probe("rloo", tiny(), steps=2, draws=4, out=tmp_path / "probe", quiet=True)
    assert {"gradient_variance", "gradient_bias_squared"} <= set(probes["metric"])


def test_rates_are_tuned_and_used(in_process, tiny, tmp_path):
    tuned = gradebench.tune(["rloo"], tiny(), [0.01, 0.02], seeds=[1000], steps=2, out=tmp_path / "tuned", quiet=True)
    results = gradebench.run("rloo", tiny(), seeds=1, steps=2, tuned=str(tuned), out=tmp_path / "run", quiet=True)
    assert results.leaderboard["rate_source"].str.startswith("tuned").all()


def test_a_check_says_what_it_found():
    found = gradebench.check("exact")
    assert found["passed"] and {one["check"] for one in found["findings"]} >= {"unbiased"}


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: gradebench.load(), "give the folder of a run"),
        (lambda: gradebench.load("nowhere"), "nowhere is no folder"),
        (lambda: gradebench.run("rlo", "bernoulli-toy"), "rlo"),
        (lambda: gradebench.run("rloo", "bernoulli-toy", seeds=0), "seeds=0: at least 1"),
        (lambda: gradebench.run("rloo", "bernoulli-toy", seeds="x"), "--seeds x"),
        (lambda: gradebench.run(lambda problem, rng: None), "<lambda>"),
        (lambda: gradebench.run([3]), "3 is neither a name nor a class"),
    ],
)
def test_what_cannot_be_used_is_one_line(call, said):
    with pytest.raises(InputError, match="^.*" + said.replace("<", r"\<")) as refused:
        call()
    assert "\n" not in str(refused.value)


def test_an_option_that_is_none_is_refused_with_those_that_are():
    with pytest.raises(TypeError, match=r"no option step, only .*steps"):
        gradebench.run("rloo", "bernoulli-toy", step=3)


def test_a_class_within_a_function_can_not_be_found_again():
    class Inner(Rloo):
        pass

    with pytest.raises(InputError, match=r"isn't at the top of a file.*%%writefile"):
        spec_of(Inner)


def test_importing_stays_quick_and_shows_the_public_names():
    code = "import sys, gradebench; print(sorted(dir(gradebench))); print([n for n in ('torch', 'pandas') if n in sys.modules])"
    names, heavy = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert heavy == "[]"
    assert eval(names) == sorted([*gradebench.__all__, "__version__"])


def test_the_script_of_the_page_runs(in_process, tmp_path, monkeypatch, capsys):
    page = (Path(__file__).parents[2] / "docs" / "python.md").read_text(encoding="utf-8")
    (script,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert "seeds=6, steps=20" in script
    script = script.replace("seeds=6, steps=20", "seeds=2, steps=1, jobs=1").replace('"enumerable-lm"', repr(SMALL))
    (tmp_path / "first.py").write_text(script)
    monkeypatch.chdir(tmp_path)
    runpy.run_path("first.py", run_name="__main__")
    shown = capsys.readouterr().out
    assert "grade-ste" in shown and "objective" in shown
