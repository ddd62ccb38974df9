"""What a run shows: plain lines when piped, a bar on a terminal, and every row of the leaderboard."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from gradebench.core import schema
from gradebench.experiment.plan import Cell
from gradebench.experiment.runner import Outcome, Run
from gradebench.reporting import terminal

CELL = Cell("imdb", "imdb", {}, "rloo", "rloo", 3)


def board(*rows):
    return pd.DataFrame(list(rows), columns=schema.LEADERBOARD_COLUMNS)


def ranked(**changes):
    facts = {
        "estimator": "rloo",
        "task": "imdb",
        "setting": "corpus=a[b]",
        "rank": 1,
        "tier": 1,
        "status": "ok",
        "n_seeds": 1,
    }
    return facts | {"ranked_by": "reward", "steps": 40, "test_reward_mean": 0.75, "gradient_variance": 12.5} | changes


def outcome(leaderboard, reasons=(), **changes):
    facts = {"reasons": dict(reasons), "unprobed": {}, "interrupted": False, "reused": 0} | changes
    facts = {"metrics": pd.DataFrame({"status": ["ok"]}), "probes": probed()} | facts
    comparisons = pd.DataFrame(columns=schema.TESTS_COLUMNS)
    return Outcome(comparisons=comparisons, leaderboard=leaderboard, **facts)


def probed(*rows):
    """probes.csv of rows (estimator, metric, value, low, high), and changes of the other columns."""
    facts = {
        "task": "imdb",
        "setting": "corpus=a[b]",
        "along": "own",
        "step": 0,
        "draws": 40,
        "samples": 16,
        "group": "",
    }
    names = ("estimator", "metric", "value", "ci_low", "ci_high")
    found = [facts | dict(zip(names, row[:5], strict=True)) | dict(*row[5:]) for row in rows]
    return pd.DataFrame(found, columns=schema.PROBES_COLUMNS)


def estimates(estimator, **changes):
    """The rows of one estimator at one checkpoint."""
    values = {
        "gradient_variance": (12.5, 11.0, 14.0),
        "gradient_variance_relative": (3.25, 2.5, 4.0),
        "gradient_bias_relative": (0.25, 0.125, 0.375),
        "gradient_cosine": (0.875, 0.75, 0.9),
        "gradient_mse": (13.5, 12.0, 15.0),
        "gradient_variance_prompts": (1.5, 1.0, 2.0),
    }
    return [(estimator, name, *ends) for name, ends in (values | changes).items()]


@pytest.fixture
def empty_run():
    return Run(Path("results/x"), "cpu", 1, [], {})


def test_missing_and_infinite_numbers_are_dashes(capsys):
    lacking = ranked(test_reward_mean=np.inf, p_vs_best_holm=np.nan, gradient_variance=None)
    terminal.print_leaderboard(board(lacking, ranked(estimator="b", p_vs_best_holm=0.1)))  # columns that b needs
    row = next(line for line in capsys.readouterr().out.splitlines() if "rloo" in line)
    assert "nan" not in row and "inf" not in row and "None" not in row
    assert len(re.findall(r" -(?= |$)", row)) >= 3


def test_every_number_stands_under_its_heading(capsys):
    shown = {"gradient_variance": 12.5, "gradient_bias_squared": 0.31, "gradient_cosine": 0.87, "p_vs_best_holm": 0.02}
    terminal.print_leaderboard(board(ranked(**shown)))
    lines = capsys.readouterr().out.splitlines()
    under = columns_of(lines, "rloo")
    assert (under["variance"], under["bias²"], under["cosine"]) == ("12.5", "0.31", "0.87")
    assert under["p vs best"] == "0.02"


def test_brackets_in_names_are_no_markup(capsys):
    terminal.print_leaderboard(board(ranked(estimator="[red]mine[/red].py:A")))
    printed = capsys.readouterr().out
    assert "[red]mine[/red].py:A" in printed and "imdb  [corpus=a[b]]" in printed


@pytest.mark.parametrize("options", [9, 40])
def test_a_long_label_is_never_cut(capsys, options):
    label = "my_estimators.py:Interpolated:" + ",".join(f"option_{i}={i}" for i in range(options))
    terminal.print_leaderboard(board(ranked(estimator=label)))
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.split("  ")[0] == label for line in lines) == 1 and any("0.750" in line for line in lines)


def test_each_task_and_setting_has_a_table_of_its_own(capsys):
    terminal.print_leaderboard(board(ranked(), ranked(setting="other"), ranked(task="digits"), ranked(estimator="b")))
    printed = capsys.readouterr().out
    assert len(re.findall("estimator .* reward ", printed)) == 3
    assert {
        f"{place}  at 40 steps, by reward"
        for place in ("imdb  [corpus=a[b]]", "imdb  [other]", "digits  [corpus=a[b]]")
    } <= {line.strip() for line in printed.splitlines()}


def test_piped_progress_is_lines_and_only_of_what_went_wrong(capsys):
    progress = terminal.TerminalProgress()
    progress.start(total=3, done=1)
    progress.advance(None, "ok")
    progress.advance(CELL, "ok")
    progress.advance(CELL, "timeout")
    progress.stop()
    out, err = capsys.readouterr()
    assert (out, err) == ("", "rloo on imdb, seed 3: timeout\n")


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


# --- probes -----------------------------------------------------------------------------------------------------


def shown(empty_run, capsys, *rows, drawn=(), **changes):
    """The lines on stdout of a run of probes, and stderr."""
    metrics = pd.DataFrame({"status": ["ok"], "estimator": ["rloo"], "task": ["imdb"]})
    ended = outcome(board(), **{"probes": probed(*rows), "metrics": metrics} | changes)
    terminal.print_probes(empty_run, ended, drawn, terminal.TerminalProgress())
    out, err = capsys.readouterr()
    return out.splitlines(), err


def columns_of(lines, estimator):
    """By heading, whose words may stand one above the other, the cells of an estimator: by the places at which they end."""
    rule = next(number for number, line in enumerate(lines) if line.startswith("───"))
    start = max(number for number in range(rule) if not number or lines[number - 1].startswith(("imdb", "corpus")))
    cells = [
        (match.end(), match[0])
        for match in re.finditer(r"\S+( \S+)*", next(row for row in lines if row.startswith(estimator)))
    ]
    words = [(match.end(), match[0]) for line in lines[start:rule] for match in re.finditer(r"\S+( \S+)*", line)]
    headings = [" ".join(word for end, word in words if end == place) for place, _ in cells]
    return dict(zip(headings, [cell for _, cell in cells], strict=True))


def test_every_probed_number_stands_under_its_heading_with_its_interval(empty_run, capsys):
    rows = estimates("rloo", gradient_variance_slope=(-0.98, -1.1, -0.86))
    rows += [("rloo", "gradient_variance", 99.0, 98.0, 100.0, {"group": "blocks.0"})]  # of a part: not shown
    lines, _ = shown(empty_run, capsys, *rows)
    under = columns_of(lines, "rloo")
    assert (under["variance"], under["MSE"], under["of prompts"]) == ("12.5", "13.5", "1.5")
    assert under["relative"] == "3.25 [2.5, 4]" and under["cosine"] == "0.875 [0.750, 0.900]"
    assert under["bias² / |grad J|²"] == "0.25 [0.125, 0.375]" and under["slope"] == "-0.98 [-1.10, -0.86]"
    assert lines[0].strip() == "imdb, step 0  [corpus=a[b]]  40 draws of 16 sequences, along own"


def test_a_bias_that_may_be_zero_is_shown_by_its_upper_end(empty_run, capsys):
    biases = {"a": (0.001, -0.002, 0.004), "b": (-0.003, -0.005, -0.001), "c": (0.5, np.nan, np.nan)}
    rows = [row for name, ends in biases.items() for row in estimates(name, gradient_bias_relative=ends)]
    lines, _ = shown(empty_run, capsys, *rows)
    found = [columns_of(lines, name)["bias² / |grad J|²"] for name in biases]
    assert found == ["~0 (< 0.004)", "~0 (< 0)", "0.5"]


def test_estimators_are_ordered_by_their_error_and_missing_numbers_are_dashes(empty_run, capsys):
    rows = [
        *estimates("worst", gradient_mse=(90.0, 80.0, 99.0)),
        *estimates("unknown", gradient_mse=(np.nan, np.nan, np.nan), gradient_cosine=(np.nan, np.nan, np.nan)),
        *estimates("best", gradient_mse=(1.0, 0.5, 2.0)),
    ]
    lines, _ = shown(empty_run, capsys, *rows)
    order = [name for line in lines for name in ("worst", "unknown", "best") if line.startswith(f"{name}  ")]
    assert order == ["best", "worst", "unknown"]
    unknown = columns_of(lines, "unknown")
    assert (unknown["MSE"], unknown["cosine"]) == ("-", "-") and "slope" not in unknown
    assert not any("nan" in line for line in lines)


def test_each_checkpoint_has_a_table_of_its_own(empty_run, capsys):
    later = [(*row, {"step": 200}) for row in estimates("rloo")]
    lines, _ = shown(empty_run, capsys, *estimates("rloo"), *later)
    assert [line.split("  ")[0].strip() for line in lines if "draws of" in line] == ["imdb, step 0", "imdb, step 200"]


def test_the_files_of_a_probe_are_named(empty_run, capsys):
    metrics = pd.DataFrame({"status": ["ok"], "estimator": ["rloo"], "task": ["imdb"]})
    drawn = [Path("results/x/plots/variance.svg")]
    lines, err = shown(empty_run, capsys, *estimates("rloo"), metrics=metrics, drawn=drawn)
    assert err == ""
    assert lines[-1] == "tables: results/x/probes.csv, metrics.csv, plots/variance.svg"


def test_a_run_without_any_probe_prints_no_table(empty_run, capsys):
    lines, _ = shown(empty_run, capsys, unprobed={"imdb": "too steep"})
    assert lines[-1].startswith("tables: ") and not any("estimator" in line for line in lines)
