"""Tables and words for a paper: whole names, nothing in them is markup, and captions that are true to the tests."""

import json
import re

import pandas as pd
import pytest

from gradebench.core import schema
from gradebench.core.errors import InputError
from gradebench.reporting import paper, pictures

NAME = r"my_file.py:A|B:tau=0.5,x=50%&#{a}~^\$"


def board(**changes):
    common = {"task": "imdb", "setting": "kl=0.05 policy=a_b", "steps": 40, "ranked_by": "objective", "n_seeds": 14}
    common |= {"status": "ok", "letters": "a", "verdict": "", "same_as": "", "tier": 1}
    rows = []
    for rank, (name, mean) in enumerate({NAME: 0.727, "es": 0.5}.items(), 1):
        row = {"estimator": name, "rank": rank, "test_objective_mean": mean, "kl_mean": 1.5}
        row |= {"test_objective_ci_low": mean - 0.01, "test_objective_ci_high": mean + 0.02}
        row |= {"gradient_variance_relative": 5.66e6 if rank == 2 else 0.9, "gradient_bias_squared": 0.1}
        row |= {"gradient_bias_squared_ci_low": -0.1, "p_vs_best_holm": 0.03 if rank == 2 else None}
        rows.append(common | row | changes)
    rows.append(common | {"estimator": "exact", "status": "skipped 14", "letters": "", "n_seeds": 0})
    return pd.DataFrame(rows, columns=schema.LEADERBOARD_COLUMNS)


def paired(n=14):
    row = {"task": "imdb", "setting": "kl=0.05 policy=a_b", "metric": "objective", "split": "test", "n_pairs": n}
    row |= {"estimator_a": NAME, "estimator_b": "es", "test": "paired sign-flip permutation (exact)", "family": 1}
    return pd.DataFrame([row], columns=schema.TESTS_COLUMNS)


def test_latex_has_whole_escaped_names_in_booktabs_and_a_caption_of_what_was_tested():
    (text,) = paper.tables(board(), paired(), "latex")
    assert (
        r"\texttt{my\_file.py:A\textbar{}B:tau=0.5,x=50\%\&\#\{a\}\textasciitilde{}\textasciicircum{}\textbackslash{}\$}"
        in text
    )
    assert re.search(r"\\toprule\n.*\\midrule\n(.*\\\\\n){2}\\bottomrule", text, re.DOTALL)
    assert r"0.727 $\pm$ 0.015" in text and r"$5.66\times10^{6}$" in text and "exact &" not in text
    (caption,) = re.findall(r"\\caption\{(.*)\}\n", text)
    for words in (
        "after 40 steps",
        "14 seeds",
        "95 \\% interval",
        "sign-flip",
        "Holm's method over 1 pair",
        r"policy=a\_b",
    ):
        assert words in caption
    columns = re.search(r"tabular\}\{(\w+)\}", text)[1]
    rows = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert {len(re.findall(r"(?<!\\)&", row)) for row in rows} == {len(columns) - 1}


def test_markdown_has_whole_names_and_as_many_cells_in_each_row():
    (text,) = paper.tables(board(), paired(), "markdown")
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {len(re.findall(r"\|", rows[1]))}
    assert "`" + NAME.replace("|", r"\|") + "`" in text and "0.727 ± 0.015" in text and r"policy=a\_b" in text


@pytest.mark.parametrize("name", ["a`b", "``", "a|b"])
def test_code_in_markdown_ends_where_the_name_ends(name):
    code = paper._code(name)
    ticks = re.match("`+", code)[0]
    assert code.endswith(ticks) and ticks not in name and name.replace("|", r"\|") in code


def test_each_task_has_its_table_and_one_where_nothing_ended_has_none():
    two = pd.concat([board(), board(task="digits"), board(task="lost", status="failed 14", rank=None)])
    assert len(paper.tables(two, paired(), "markdown")) == 2


@pytest.fixture
def cited(command, tmp_path):
    """What `cite` prints of a run whose tables were given."""
    from gradebench.analysis import tables

    rows = []
    for name, seed in ((name, seed) for name in ("rloo", "grpo") for seed in range(6)):
        identity = {"run_id": "r", "cell_id": f"{name}-{seed}", "task": "imdb", "setting": "kl=0.05", "estimator": name}
        identity |= {"estimator_params": "{}", "estimator_source": "gradebench 0.1.0", "seed": seed, "status": "ok"}
        identity |= {"phase": "evaluation", "split": "test", "step": 40, "metric": "reward", "unit": "1"}
        rows.append(identity | {"value": 0.5 + 0.1 * (name == "rloo") + 0.01 * seed})
    tables.write_parquet(pd.DataFrame(rows)[schema.METRICS_COLUMNS], tmp_path / "metrics.parquet")
    config = {
        "cells": [row["cell_id"] for row in rows],
        "seeds": list(range(6)),
        "rate_sources": {"imdb": {"rloo": "task"}},
    }
    config["plans"] = {"imdb": {"steps": 40, "batch": 32, "clip": 1.0, "setting": "kl=0.05"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    packages = {"gradebench": "0.1.0", "torch": "2.13.0"}
    (tmp_path / "environment.json").write_text(json.dumps({"packages": packages, "python": "3.11.7", "device": "cpu"}))
    return lambda *words: command(*words, tmp_path)


def test_cite_says_what_was_run_and_tested_with_which_versions(cited):
    status, out, err = cited("cite")
    assert (status, err) == (0, "")
    assert out.startswith("@software{gradebench,\n") and "version = {0.1.0}" in out
    for words in (
        "2 gradient estimators (rloo, grpo)",
        "40 steps of 32 sampled",
        "6 seeds",
        "the task's default",
        "Holm",
    ):
        assert words in out
    assert "over 1 pair" in out and "torch 2.13.0 and Python 3.11.7 on cpu" in out and "sign-flip" in out


def test_a_format_prints_the_table_alone(cited):
    for form, start in (("latex", "% needs"), ("markdown", "Test reward on `imdb`"), ("csv", "rank,tier,letters,")):
        status, out, err = cited("leaderboard", "--format", form)
        assert (status, err) == (0, "") and out.startswith(start) and "Next:" not in out and "rloo" in out
    assert cited("leaderboard", "--format", "word")[0] == 2


# --- figures ----------------------------------------------------------------------------------------------------

PICTURE = '<svg viewBox="0 0 540 300"><text x="20" y="40">a word, |∇J|²</text><circle class="dot f0" cx="90" cy="90" r="5"/></svg>'


@pytest.mark.parametrize(("text", "wanted"), [("3.25in", 234), ("82mm", 232.44), ("8.2cm", 232.44), ("234pt", 234)])
def test_widths_are_read_in_the_units_of_journals(text, wanted):
    assert pictures.points(text) == pytest.approx(wanted, abs=0.01)


@pytest.mark.parametrize("text", ["3.25", "in", "-3in", "0in", "1e9in", "3 inches", "99999in"])
def test_other_widths_are_refused(text):
    with pytest.raises(InputError, match=r"as in 3\.25in"):
        pictures.points(text)


def test_an_svg_for_a_page_has_its_width_and_light_colours(tmp_path):
    text = pictures.export(PICTURE, tmp_path, "one", "svg", 234.0).read_text("utf-8")
    assert text.startswith('<svg width="234pt" ') and "var(--" not in text and "a word" in text


def test_a_pdf_is_as_wide_as_asked_and_has_its_font_inside(tmp_path):
    pytest.importorskip("svglib")
    content = pictures.export(PICTURE, tmp_path, "one", "pdf", 234.0).read_bytes()
    assert content.startswith(b"%PDF-") and b"/FontFile2" in content
    assert re.search(rb"/MediaBox \[ 0 0 234 130(\.0*)? \]", content)


def test_a_png_for_a_page_has_300_dots_on_an_inch(tmp_path):
    if pictures.no_png():
        pytest.skip(pictures.no_png())
    content = pictures.export(PICTURE, tmp_path, "one", "png", 234.0).read_bytes()
    assert content.startswith(b"\x89PNG") and int.from_bytes(content[16:20], "big") in (974, 975)


def test_pdf_without_its_package_is_one_line(cited, monkeypatch):
    monkeypatch.setattr(pictures.importlib.util, "find_spec", lambda name: None)
    status, out, err = cited("report", "--figures", "pdf")
    assert (status, out) == (2, "") and "pip install 'gradebench[figures]'" in err and len(err.splitlines()) == 1


def test_the_report_writes_a_file_for_each_figure(cited, tmp_path):
    status, out, err = cited("report", "--figures", "svg", "--width", "82mm")
    assert status == 0, err
    found = sorted((tmp_path / "figures").iterdir())
    assert found and all(f"{path}\n" in out for path in found)
    assert all(path.read_text("utf-8").startswith('<svg width="232.441pt"') for path in found)
