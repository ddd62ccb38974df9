"""What the README shows is what was measured, and what it tells a reader to do works."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import typer.main

from gradebench import Estimator, cli, generator
from gradebench.plugins.registry import entries
from gradebench.tasks.imdb import Imdb

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
REFERENCE_RUNS = ["imdb-embedded-cpu", "imdb-scratch-cpu"]


def number(value: Any, form: str) -> str:
    return "-" if pd.isna(value) else format(value, form)


COLUMNS = (
    ("rank", ["rank"], ".0f"),
    ("letters", ["letters"], ""),
    ("estimator", ["estimator"], ""),
    ("objective", ["test_objective_mean"], ".3f"),
    ("95 % interval", ["test_objective_ci_low", "test_objective_ci_high"], ".3f"),
    ("reward", ["test_reward_mean"], ".3f"),
    ("gold", ["test_gold_reward_mean"], ".3f"),
    ("KL", ["kl_mean"], ".2f"),
    ("MSE", ["gradient_mse_relative"], ".3g"),
    ("direction", ["gradient_direction_error"], ".3f"),
    ("variance", ["gradient_variance_relative"], ".3g"),
    ("bias²", ["gradient_bias_squared"], ".2f"),
    ("cosine", ["gradient_cosine"], ".2f"),
    ("rate", ["learning_rate"], ".2g"),
    ("s/step", ["seconds_per_step"], ".3f"),
    ("p", ["p_vs_best_holm"], ".2g"),
)


def markdown(leaderboard: pd.DataFrame) -> str:
    """The leaderboard as the README prints it; what was skipped has nothing to show."""
    ranked = leaderboard[leaderboard["rank"].notna()]
    shown = [one for one in COLUMNS if ranked[one[1][0]].notna().any()]
    marks = ["---" if heading in ("letters", "estimator") else "--:" for heading, _, _ in shown]
    lines = [f"| {' | '.join(heading for heading, _, _ in shown)} |", f"|{'|'.join(marks)}|"]
    for row in ranked.to_dict("records"):
        row["estimator"] = f"`{row['estimator']}`"
        cells = [" to ".join(number(row[name], form) for name in names) for _, names, form in shown]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def by_budget(run: Path, rows: int = 8) -> str:
    """The mean objective of the highest estimators at each number of steps, the highest of each in bold."""
    board, budgets = pd.read_csv(run / "leaderboard.csv"), pd.read_csv(run / "budgets.csv")
    steps = budgets[(budgets["axis"] == "steps") & (budgets["metric"] == "objective")].astype({"budget": int})
    wide = steps.pivot(index="estimator", columns="budget", values="mean")
    headings = [f"{wide.columns[0]} steps", *map(str, wide.columns[1:]), f"reward at {wide.columns[-1]}", "KL", "bias²"]
    lines = [f"| estimator | {' | '.join(headings)} |", "|---|" + "--:|" * len(headings)]
    for row in board.sort_values("rank").head(rows).to_dict("records"):
        means = wide.loc[row["estimator"]].items()
        cells = [f"**{mean:.3f}**" if mean == wide[budget].max() else f"{mean:.3f}" for budget, mean in means]
        cells += [f"{row['test_reward_mean']:.3f}", f"{row['kl_mean']:.2f}", f"{row['gradient_bias_squared']:.2f}"]
        lines.append(f"| `{row['estimator']}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def test_the_first_table_is_that_of_the_committed_run():
    assert by_budget(ROOT / "results" / "leaders-imdb-embedded") in README


@pytest.mark.parametrize("run", REFERENCE_RUNS)
def test_the_readme_shows_the_committed_leaderboard(run: str):
    assert markdown(pd.read_csv(ROOT / "results" / run / "leaderboard.csv")) in README


@pytest.mark.parametrize("run", REFERENCE_RUNS)
def test_every_cell_of_the_committed_runs_is_ok_or_skipped_with_reason(run: str):
    """The task can't be enumerated, and its tokens aren't binary."""
    leaderboard = pd.read_csv(ROOT / "results" / run / "leaderboard.csv").set_index("estimator")
    skipped = leaderboard["status"].str.startswith("skipped")
    assert set(skipped[skipped].index) <= {"disarm", "exact"}
    assert set(leaderboard["status"][~skipped]) == {"ok"}


def test_the_first_bash_block_is_the_two_commands():
    commands = re.search(r"```bash\n(.*?)```", README, re.DOTALL)
    assert commands is not None
    setup, tests = commands[1].strip().split("\n")
    assert setup.endswith("gradebench run --estimator all --task imdb")
    assert "-c constraints.txt" in setup
    assert tests.startswith(".venv/bin/pytest")


def test_the_readme_lists_every_estimator_beside_its_family():
    rows = {row[1]: row[2] for row in re.finditer(r"^\| ([a-z -]+) \| (.*`.*) \|$", README, re.MULTILINE)}
    for name, entry in entries("estimators").items():
        if entry.builtin:
            assert f"`{name}`" in rows[entry.card["family"]], name


def test_the_readme_lists_every_option_of_the_main_task_with_its_default():
    rows = {}
    for names, default in re.findall(r"^\| ((?:`\w+`(?:, )?)+) \| (.*?) \|", README, re.MULTILINE):
        rows |= dict.fromkeys(re.findall(r"`(\w+)`", names), default)
    plain = {"as_run": "none"} | Imdb().options  # those of the default preset, in place of "the preset's"
    for name, option in entries("tasks")["imdb"].options.items():
        assert name in rows, name
        assert f"`{plain.get(name, option.default)}`" in rows[name], (name, rows[name])


def test_the_readme_lists_every_task():
    for name, entry in entries("tasks").items():
        if entry.builtin:
            assert re.search(rf"^\| `{name}` \|", README, re.MULTILINE), name


def test_the_readme_lists_every_command():
    rows = " ".join(re.findall(r"^\| (`gradebench [^|]*) \|", README, re.MULTILINE))
    listed = {word.partition(" ")[0] for word in re.findall(r"`(?:gradebench )?([^`]*)`", rows)}
    assert listed == set(typer.main.get_command(cli.app).commands)  # type: ignore[attr-defined]


def example_of_an_estimator() -> str:
    example = re.search(r"```python\n(.*?)```", README, re.DOTALL)
    assert example is not None
    return example[1]


def test_the_example_estimator_runs_and_is_on_the_leaderboard(tmp_path):
    """With the spelling that the README gives, on a task of a few seconds."""
    assert len(example_of_an_estimator().strip().split("\n")) <= 15
    file = re.search(r"In a file `(.*?)`", README)
    spec = re.search(r"gradebench run -e all -e (\S+) -t", README)
    assert file and spec
    (tmp_path / file[1]).write_text(example_of_an_estimator(), encoding="utf-8")
    arguments = ["-e", "reinforce", "-e", spec[1], "-t", "bernoulli-toy", "--seeds", "0-2", "--steps", "2"]
    done = subprocess.run(
        [Path(sys.executable).with_name("gradebench"), "run", *arguments, "--out", "out"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    board = pd.read_csv(tmp_path / "out" / "leaderboard.csv").set_index("estimator")
    name = spec[1].removeprefix("./")
    assert board.loc[name, "status"] == "ok" and board.loc[name, "n_seeds"] == 3
    assert name in done.stdout


def test_the_example_estimator_is_an_estimator_with_a_gradient(tiny_problem):
    namespace: dict = {"__name__": "mine"}
    exec(compile(example_of_an_estimator(), "mine.py", "exec"), namespace)  # noqa: S102 - our own README
    (estimator,) = [
        v for v in namespace.values() if isinstance(v, type) and issubclass(v, Estimator) and v != Estimator
    ]
    problem = tiny_problem()
    grad = estimator().gradient(problem, generator("cpu", 0)).grad
    assert any(bool(g.abs().sum() > 0) for g in grad)
    assert [g.shape for g in grad] == [p.shape for p in problem.params]
