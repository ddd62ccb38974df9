"""What people see of each command in terminals of 80, 100, 140 and 200 columns, as files beside this one.

After a change that is meant to be seen: `python tests/gradebench/reporting/test_screens.py` writes them anew; look at
the difference before you commit it.
"""

import contextlib
import functools
import io
import itertools
import os
import re
import sys
from pathlib import Path
from unittest import mock

import pandas as pd
import pytest
from rich.cells import cell_len

from gradebench.analysis.runs import CellStatus
from gradebench.core import schema
from gradebench.core.options import Option, Range
from gradebench.experiment.plan import Cell, Plan
from gradebench.experiment.runner import Outcome, Run
from gradebench.plugins.registry import Entry
from gradebench.reporting import listing, next_steps, pair_tables, terminal, terminal_tables, verdicts

SCREENS = Path(__file__).with_name("screens")
WIDTHS = (80, 100, 140, 200)
RUN = Path("results/imdb")
TASK, SETTING = "imdb", "corpus=embedded:9569562d policy=scratch-mini reward=trained kl=0.05"
MINE = "my_estimators.py:Interpolated:tau=0.5"
LONG = f"{MINE},mix=0.25,steps=3,baseline=leave-one-out,clip=none"  # too long for a table in 80 columns
# estimator, letters, tier, objective, reward, KL, relative variance, bias and the lower end of its interval
BOARD = (
    ("gapped-st", "a", 1, 0.727, 0.782, 1.09, 1.03, 0.40, 0.31),
    ("grade-ste", "a", 1, 0.706, 0.751, 0.91, 0.927, 0.45, 0.36),
    (MINE, "ab", 1, 0.703, 0.751, 0.96, 1.77, 0.02, -0.05),
    ("rloo", "bc", 2, 0.581, 0.665, 1.70, 38.7, -0.12, -0.3),
    ("unordered-set", "c", 2, 0.566, 0.632, 1.33, 38.6, None, None),
    ("es", "d", 3, 0.516, 0.516, 0.0001, 5.66e6, None, None),
)
NAMES = [row[0] for row in BOARD]
NEEDS_EXACT = "exact needs exact, which the task does not offer"


def board():
    rows = []
    for rank, (name, letters, tier, objective, reward, kl, variance, bias, low) in enumerate(BOARD, 1):
        row = {"estimator": name, "rank": rank, "tier": tier, "letters": letters, "status": "ok", "n_seeds": 14}
        row |= {
            f"test_objective_{end}": objective + by for end, by in (("mean", 0), ("ci_low", -0.012), ("ci_high", 0.01))
        }
        row |= {f"test_reward_{end}": reward + by for end, by in (("mean", 0), ("ci_low", -0.02), ("ci_high", 0.02))}
        row |= {"kl_mean": kl, "gradient_variance_relative": variance, "gradient_variance": variance / 4}
        row |= {"gradient_bias_squared": bias, "gradient_bias_squared_ci_low": low, "p_vs_best_holm": p_of(1, rank)}
        row |= {"seconds_per_step": 0.07 + 0.01 * rank, "learning_rate": 0.001, "rate_source": "task", "same_as": ""}
        row |= {"updates_per_step": 1, "clipped_updates": 0.01, "generalization_gap": 0.016, "verdict": ""}
        rows.append(row)
    rows.append(
        {"estimator": "reinmax", "status": "failed 14", "n_seeds": 0, "letters": "", "same_as": "", "verdict": ""}
    )
    rows += [{"estimator": name, "status": "skipped 14", "n_seeds": 0} for name in ("disarm", "exact")]
    common = {"task": TASK, "setting": SETTING, "steps": 40, "ranked_by": "objective"}
    frame = pd.DataFrame([row | common for row in rows], columns=schema.LEADERBOARD_COLUMNS)
    return frame.astype({"rank": "Int64", "tier": "Int64", "letters": object}).fillna({"letters": "", "verdict": ""})


def p_of(a, b):
    """After Holm, of the ranks a and b; of the best none."""
    return None if a == b else 1.0 if abs(a - b) < 2 else 0.0688 if abs(a - b) == 2 else 0.0309


def paired(*metrics):
    rows = []
    for metric, (a, b) in itertools.product(
        metrics or ["objective"], itertools.combinations(range(1, len(BOARD) + 1), 2)
    ):
        (name_a, *_, first), (name_b, *_, second) = BOARD[a - 1][:4], BOARD[b - 1][:4]
        p, by = p_of(a, b), first - second
        row = {"estimator_a": name_a, "estimator_b": name_b, "metric": metric, "split": "test", "n_pairs": 14}
        row |= {"mean_difference": by, "ci_low": by - 0.01, "ci_high": by + 0.012, "effect_size": 40 * by}
        row |= {"p_value": p / 15, "p_holm": p, "verdict": "a higher" if p < 0.05 else "not distinguishable"}
        rows.append(row | {"task": TASK, "setting": SETTING, "family": 15, "smallest_attainable_p": 0.000122})
    return pd.DataFrame(rows, columns=schema.TESTS_COLUMNS)


def probes():
    rows = []
    for name, _, _, _, _, _, variance, bias, low in BOARD:
        values = {"gradient_variance_relative": (variance, 0.75 * variance, 1.25 * variance)}
        values |= {"gradient_variance": (variance / 4, variance / 5, variance / 3)}
        values |= {"gradient_mse": (variance / 3, variance / 4, variance / 2)}
        values |= {"gradient_cosine": (0.82, 0.75, 0.875)}
        if bias is not None:
            values |= {"gradient_bias_relative": (bias, low, 2 * bias - low)}
        rows += [(name, metric, *ends) for metric, ends in values.items()]
    facts = {"task": TASK, "setting": SETTING, "along": "reference", "step": 0, "draws": 40, "samples": 16, "group": ""}
    columns = ("estimator", "metric", "value", "ci_low", "ci_high")
    return pd.DataFrame([facts | dict(zip(columns, row, strict=True)) for row in rows], columns=schema.PROBES_COLUMNS)


def outcome(leaderboard, **facts):
    metrics = pd.DataFrame({"status": ["ok"]})
    cells = [Cell(TASK, TASK, {}, name, name, seed) for name in ("exact", "reinmax") for seed in range(14)]
    plan = Plan("run", RUN, "cpu", 10, 16)
    run = Run(RUN, "cpu", 2, [(plan, cell) for cell in cells], {})
    said = {"exact": f"skipped: {NEEDS_EXACT}", "reinmax": "failed: ArithmeticError: the step is no number"}
    reasons = {cell.id: said[cell.estimator] for cell in cells if cell.estimator == "exact" or cell.seed < 2}
    return run, Outcome(
        metrics, probes(), reasons, {}, False, 0, leaderboard=leaderboard, comparisons=paired(), **facts
    )


def run():
    ran, ended = outcome(board())
    terminal.print_outcome(ran, ended, terminal.TerminalProgress())


def leaderboard():
    reasons = next_steps.why_skipped(board(), {(TASK, "exact"): NEEDS_EXACT})
    terminal_tables.print_leaderboard(board(), paired(), reasons)
    next_steps.print_next(terminal_tables.stdout_console(), next_steps.after_leaderboard([RUN], board(), False))


def long_names():
    renamed = board().replace({"estimator": {MINE: LONG}})
    terminal_tables.print_leaderboard(renamed)


def compare():
    against_best = paired().query("estimator_a == 'gapped-st'")
    pair_tables.print_comparisons(against_best)
    pair_tables.print_leads(board(), paired())
    next_steps.print_next(terminal_tables.stdout_console(), next_steps.after_comparison([RUN], against_best, False))


def compare_two():
    rows = paired("objective", "reward", "gradient_variance")
    pair_tables.print_comparisons(
        rows.query(f"estimator_a == 'grade-ste' and estimator_b == {MINE!r}"), (), ("grade-ste", MINE)
    )
    pair_tables.print_comparisons(rows.query("estimator_a == 'rloo' and estimator_b == 'es'"), (), ("rloo", "es"))


def claims():
    judged = {"task": TASK, "setting": SETTING, "steps": 40, "n_pairs": 14, "p_holm": 0.00159, "effect_size": 5.98}
    judged |= {"source": "Nel 2025 (arXiv:2601.11574), abstract: 0.763 against 0.617", "seeds_needed": None}
    judged |= {
        "measured": 0.1105,
        "ci_low": 0.1003,
        "ci_high": 0.1204,
        "power": 1.0,
        "detectable": 0.0211,
        "reason": "",
    }
    supported = {"verdict": "supported", "says": "GRADE-STE ends with a higher test reward than REINFORCE"}
    open_yet = {
        "verdict": "not distinguishable",
        "says": "GRADE-STE's gap between train and test reward is below PPO's",
    }
    untested = {"verdict": "untested", "says": "RELAX's gradient has less variance than REINFORCE's"}
    untested |= {
        "reason": "the run has no task bernoulli-toy; this would test it: gradebench run -e relax -e rloo -t bernoulli-toy"
    }
    claimed = {"claimed": "grade-ste - reinforce >= 0"}
    rows = [supported | claimed, open_yet | claimed | {"seeds_needed": 54.0, "power": 0.11}, untested | claimed]
    terminal_tables.print_claims(pd.DataFrame([judged | row for row in rows]))


def probe():
    ran, ended = outcome(board().iloc[:0])
    terminal.print_probes(ran, ended, [], terminal.TerminalProgress())


def list_():
    listing._print_tables(ENTRIES, verbose=False)


def list_verbose():
    listing._print_tables(ENTRIES, verbose=True)


def status():
    cells = [CellStatus(f"imdb--rloo--s{seed}-e0ef47", "ok", "") for seed in range(20)]
    cells += [CellStatus(f"imdb--exact--s{seed}-1fae22", "skipped", NEEDS_EXACT) for seed in range(14)]
    cells += [
        CellStatus("imdb--reinmax--s0-85fde0", "failed", "ArithmeticError: the third law of the estimator is broken")
    ]
    config = {"request": {"estimators": ["rloo", "reinmax", "exact"], "tasks": [TASK], "seeds": "0-13"}}
    terminal_tables.print_statuses(cells, next_steps.after_status(RUN, config, complete=False))


SHOWN = {
    one.__name__.strip("_"): one
    for one in (run, leaderboard, long_names, compare, compare_two, claims, probe, list_, list_verbose, status)
}
PARTS = {"n": Option("n", int, default=4, range=Range(2), doc="samples per context")}
CARD = {"family": "score function", "formula": "mean_i (f_i - mean_{j != i} f_j)\ngrad log p(z_i)", "bias": "none."}
ENTRIES = {
    "estimators": [
        Entry("estimators", "rloo", "m:R", "gradebench", "0.1.0", True, "Leave-one-out REINFORCE.", True, (), PARTS, CARD),
        Entry("estimators", "grade-ste", "m:S", "gradebench", "0.1.0", True, "Hard tokens forward, Gumbel-softmax backward, through the reward and the token fed back.", False, ("soft_reward",), {}),
        Entry("estimators", "lost", "m:L", "other", "2.0", False, problem="there is no module m"),
    ],
    "tasks": [Entry("tasks", "imdb", "m:I", "gradebench", "0.1.0", True, "Film-review openings continued towards positive sentiment.")],
}  # fmt: skip


@functools.cache
def screen(name, width):
    """Everything that the command prints in a terminal of this width."""
    printed = io.StringIO()
    with (
        mock.patch.dict(os.environ, {"COLUMNS": str(width)}),
        contextlib.redirect_stdout(printed),
        contextlib.redirect_stderr(printed),
    ):
        SHOWN[name]()
    return "\n".join(line.rstrip() for line in printed.getvalue().splitlines()) + "\n"


EACH = [(name, width) for name in SHOWN for width in WIDTHS]


@pytest.mark.parametrize(("name", "width"), EACH)
def test_the_screen_is_as_it_was_looked_at(name, width):
    assert screen(name, width) == (SCREENS / f"{name}-{width}.txt").read_text("utf-8")


@pytest.mark.parametrize(("name", "width"), EACH)
def test_nothing_is_wider_than_the_terminal_and_no_number_is_cut(name, width):
    lines = screen(name, width).splitlines()
    assert lines and all(cell_len(line) <= width for line in lines if LONG not in line)
    assert not re.search(r"…|\.\.\.", "\n".join(lines))


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", ["run", "leaderboard", "long_names", "compare", "probe"])
def test_every_name_stands_whole_at_the_start_of_its_row(name, width):
    rows = [line.split("  ")[0] for line in screen(name, width).splitlines()]
    names = [LONG if one == MINE and name == "long_names" else one for one in NAMES]
    if name == "compare":
        text = screen(name, width)
        assert all(re.search(rf"^gapped-st +{re.escape(one)} ", text, re.MULTILINE) for one in names[1:])
    else:
        assert set(names) <= set(rows)


@pytest.mark.parametrize("width", WIDTHS)
def test_no_column_has_only_dashes(width):
    lines = screen("leaderboard", width).splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("───"))
    rows = [re.split(r" {2,}", line) for line in itertools.takewhile(lambda line: "  " in line, lines[start + 1 :])]
    assert len(rows) == len(BOARD) and len({len(row) for row in rows}) == 1
    assert all(set(cells) - {"-"} for cells in zip(*rows, strict=True))


def test_wider_terminals_show_more_and_the_first_columns_are_everywhere():
    headings = {}
    for width in WIDTHS:
        lines = screen("leaderboard", width).splitlines()
        rule = next(number for number, line in enumerate(lines) if line.startswith("───"))
        headings[width] = re.split(r" {2,}", lines[rule + 1])
    assert [len(headings[width]) for width in WIDTHS] == sorted({len(headings[width]) for width in WIDTHS})
    assert headings[80][:3] == ["gapped-st", "1", "1"] and {"0.727 ± 0.011", "1.09", "1.03"} <= set(headings[80])


@pytest.mark.parametrize("by", ["objective", "reward", "gold_reward"])
def test_a_verdict_is_about_what_ranks(by):
    """With an interval where the leaderboard has one, which it hasn't of the gold reward."""
    ranked = board().assign(ranked_by=by, test_gold_reward_mean=0.5)
    said = verdicts.lead(ranked, paired(by))
    assert f"gapped-st has the highest test {by.replace('_', ' ')}, 0." in said
    assert ("±" in said) == (by != "gold_reward") and "3 of the 5 others, by 0.146 (rloo) to 0.211 (es)" in said
    terminal_tables.print_leaderboard(ranked, paired(by))


def test_a_verdict_of_one_estimator_compares_nothing():
    said = verdicts.lead(board().iloc[:1], paired().iloc[:0])
    assert (
        said.startswith("gapped-st has a test objective, 0.727 ± 0.011, after 40 steps")
        and "nothing to compare" in said
    )


def test_a_verdict_where_nobody_differs_says_so():
    alike = board().assign(letters="a", p_vs_best_holm=1.0)
    assert "No two of the 6 estimators are significantly different" in verdicts.lead(alike, paired())


def test_there_is_a_file_for_each_screen_and_no_other():
    assert {path.name for path in SCREENS.iterdir()} == {f"{name}-{width}.txt" for name, width in EACH}


if __name__ == "__main__":
    SCREENS.mkdir(exist_ok=True)
    for old in SCREENS.glob("*.txt"):
        old.unlink()
    for one, columns in EACH:
        (SCREENS / f"{one}-{columns}.txt").write_text(screen(one, columns), "utf-8")
    sys.stdout.write(f"{len(EACH)} screens in {SCREENS}\n")
