"""What a run shows: plain lines when piped, a bar on a terminal, and every row of the leaderboard."""

import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from gradebench import tables, terminal
from gradebench.harness import Cell
from gradebench.runner import Outcome, Run

CELL = Cell("imdb", "imdb", {}, "rloo", "rloo", 3)


def board(*rows):
    return pd.DataFrame(list(rows), columns=tables.LEADERBOARD_COLUMNS)


def ranked(**changes):
    facts = {"estimator": "rloo", "task": "imdb", "setting": "corpus=a[b]", "rank": 1, "tier": 1, "status": "ok"}
    return facts | {"test_reward_mean": 0.75, "gradient_variance": 12.5} | changes


def outcome(leaderboard, reasons=(), **changes):
    facts = {"reasons": dict(reasons), "unprobed": {}, "interrupted": False, "reused": 0} | changes
    comparisons = pd.DataFrame(columns=tables.TESTS_COLUMNS)
    return Outcome(pd.DataFrame({"status": ["ok"]}), comparisons, leaderboard, **facts)


@pytest.fixture
def empty_run():
    return Run(Path("results/x"), "cpu", 1, [], {})


def test_missing_and_infinite_numbers_are_dashes(capsys):
    terminal.print_leaderboard(board(ranked(test_reward_mean=np.inf, p_vs_best_holm=np.nan, gradient_variance=None)))
    row = next(line for line in capsys.readouterr().out.splitlines() if "rloo" in line)
    assert "nan" not in row and "inf" not in row and "None" not in row
    assert row.count(" - ") >= 3


def test_every_number_stands_under_its_heading(capsys):
    shown = {"gradient_variance": 12.5, "gradient_bias_squared": 0.31, "gradient_cosine": 0.87, "p_vs_best_holm": 0.02}
    terminal.print_leaderboard(board(ranked(**shown)))
    lines = capsys.readouterr().out.splitlines()
    headings = [cell.strip() for cell in next(line for line in lines if "estimator" in line).strip("┃").split("┃")]
    values = [cell.strip() for cell in next(line for line in lines if "rloo" in line).strip("│").split("│")]
    under = dict(zip(headings, values, strict=True))
    assert (under["variance"], under["bias²"], under["cosine"]) == ("12.5", "0.31", "0.87")
    assert (under["p vs best"], under["status"]) == ("0.02", "ok")


def test_brackets_in_names_are_no_markup(capsys):
    terminal.print_leaderboard(board(ranked(estimator="[red]mine[/red].py:A")))
    printed = capsys.readouterr().out
    assert "[red]mine[/red].py:A" in printed and "imdb  [corpus=a[b]]" in printed


def test_a_long_label_is_folded_and_never_cut(capsys):
    label = "my_estimators.py:Interpolated:" + ",".join(f"option_{i}={i}" for i in range(9))
    terminal.print_leaderboard(board(ranked(estimator=label)))
    lines = [line.split("│")[1].strip() for line in capsys.readouterr().out.splitlines() if "│" in line]
    assert "".join(lines) == label


def test_each_task_and_setting_has_a_table_of_its_own(capsys):
    terminal.print_leaderboard(board(ranked(), ranked(setting="other"), ranked(task="digits"), ranked(estimator="b")))
    printed = capsys.readouterr().out
    assert printed.count("test reward") == 3
    assert {"imdb  [corpus=a[b]]", "imdb  [other]", "digits  [corpus=a[b]]"} <= {
        line.strip() for line in printed.splitlines()
    }


def test_piped_progress_is_lines_and_only_of_what_went_wrong(capsys):
    progress = terminal.TerminalProgress()
    progress.start(total=3, done=1)
    progress.advance(None, "ok")
    progress.advance(CELL, "ok")
    progress.advance(CELL, "timeout")
    progress.stop()
    out, err = capsys.readouterr()
    assert (out, err) == ("", "rloo on imdb, seed 3: timeout\n")


def test_on_a_terminal_a_bar_counts_the_cells(monkeypatch):
    screen = io.StringIO()
    progress = terminal.TerminalProgress()
    progress.console = Console(file=screen, force_terminal=True, width=100)
    progress.start(total=4, done=1)
    progress.advance(CELL, "ok")
    progress.stop()
    assert "2/4" in screen.getvalue() and "rloo seed 3 ok" in screen.getvalue()


def test_the_reasons_of_many_failures_are_cut_and_counted(empty_run, capsys):
    reasons = [(f"cell-{i}", "failed: it") for i in range(terminal.REASONS_SHOWN + 5)]
    terminal.print_outcome(empty_run, outcome(board(ranked()), reasons), terminal.TerminalProgress())
    err = capsys.readouterr().err.splitlines()
    assert len(err) == terminal.REASONS_SHOWN + 1
    assert err[-1] == "and 5 more: see results/x/cells/*/cell.json"


def test_kept_cells_and_missing_probes_are_told(empty_run, capsys):
    ended = outcome(board(ranked()), unprobed={"imdb": "too steep"}, reused=7)
    terminal.print_outcome(empty_run, ended, terminal.TerminalProgress())
    out, err = capsys.readouterr()
    assert "7 cells were finished by an earlier run and kept" in err
    assert "imdb: no gradient probes, because the reference gradient failed: too steep" in err
    assert "tables: results/x/leaderboard.csv" in out
