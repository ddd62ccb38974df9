"""For a paper: leaderboards as LaTeX and Markdown tables with captions that say what was tested, and words to cite."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd

from gradebench.analysis.statistics import ALPHA
from gradebench.core.shown import counted, one_line
from gradebench.reporting.fitted import EMPTY, Shown
from gradebench.reporting.terminal_tables import columns_of
from gradebench.reporting.verdicts import has_nothing
from gradebench.reporting.wording import metric_in_words

FORMATS = ("table", "latex", "markdown", "csv")
# The headings of a table for a page, of those that the terminal has.
_HEADINGS: tuple[str, ...] = (
    "rank",
    "estimator",
    "letters",
    "verdict",
    "objective",
    "test reward",
    "gold",
    "KL",
    "relative variance",
)
_HEADINGS += ("bias²", "p vs best", "p vs baseline")
_SOURCES = {"task": "the task's default", "given": "given by hand, the same for all"}
_LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "²": "$^2$", "±": r"$\pm$"}
_LATEX |= {one: f"\\{one}" for one in "&%$#_{}"} | {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}"}
_SCIENTIFIC = re.compile(r"(-?\d+(?:\.\d+)?)e([+-]\d+)")


def tables(board: pd.DataFrame, tests: pd.DataFrame, form: str) -> list[str]:
    """Each task of a leaderboard as a table with its caption, in LaTeX (booktabs) or Markdown."""
    write = {"latex": _latex, "markdown": _markdown}[form]
    answer = []
    for _, one in board.groupby(["task", "setting"], sort=False):
        ended = one[~has_nothing(one)]
        if not ended.empty:
            answer.append(write(_columns(ended), ended, tests))
    return answer


def _columns(board: pd.DataFrame) -> list[Shown]:
    """Those of `_HEADINGS` that have a value, the name first."""
    found = [one for one in columns_of(board) if one.heading.removesuffix(" ±") in _HEADINGS]
    return [one for one in found if not EMPTY.issuperset(one.cells)]


def caption(board: pd.DataFrame, tests: pd.DataFrame, code: Callable[[str], str], plain: Callable[[str], str]) -> str:
    """What was compared on which task, after how many steps, with how many seeds, what ± is, and which test it was."""
    first = board.iloc[0]
    metric = str(first["ranked_by"])
    seeds = sorted({int(n) for n in board["n_seeds"] if n > 0})
    counts = str(seeds[0]) if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}" if seeds else "no"
    steps = "" if pd.isna(first["steps"]) else f" after {counted(first['steps'], 'step')}"
    said = (
        f"Test {metric_in_words(metric)} on {code(str(first['task']))} ({plain(str(first['setting']))}){plain(steps)}, "
    )
    said += plain(f"mean over {counted(counts, 'seed')} ± half the width of its 95 % interval.")
    place = (tests[["task", "setting", "metric", "split"]] == [first["task"], first["setting"], metric, "test"]).all(
        axis=1
    )
    used = tests[place & (tests["n_pairs"] > 0)]
    if not used.empty:
        pairs = int(used["family"].max())
        said += plain(f" Tests: {used['test'].iloc[0]}, corrected by Holm's method over {counted(pairs, 'pair')}.")
    if (board["letters"].fillna("") != "").any():
        said += plain(f" Estimators that share a letter aren't significantly different (p < {ALPHA:g}).")
    if board["gradient_variance_relative"].notna().any():
        said += plain(" Relative variance and bias² are divided by the squared norm of the true gradient; ")
        said += plain("~0: not significantly different from 0.")
    return said


def latex(text: str) -> str:
    """Text that others wrote, for LaTeX; numbers with exponents as it sets them."""
    escaped = "".join(_LATEX.get(sign, sign) for sign in one_line(text))
    return _SCIENTIFIC.sub(lambda found: rf"${found[1]}\times10^{{{int(found[2])}}}$", escaped)


def _latex(columns: Sequence[Shown], board: pd.DataFrame, tests: pd.DataFrame) -> str:
    def code(name: str) -> str:
        return rf"\texttt{{{latex(name)}}}"

    kinds = "".join("l" if column.left else "r" for column in columns)
    head = " & ".join(latex(column.heading) for column in columns)
    lines = [r"% needs \usepackage{booktabs}", r"\begin{table}", r"\centering"]
    lines += [rf"\caption{{{caption(board, tests, code, latex)}}}", rf"\begin{{tabular}}{{{kinds}}}"]
    lines += [r"\toprule", rf"{head} \\", r"\midrule"]
    for row in zip(*(column.cells for column in columns), strict=True):
        cells = [code(row[0]), *("--" if cell == "-" else latex(cell) for cell in row[1:])]
        lines.append(rf"{' & '.join(cells)} \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}"])


def markdown(text: str) -> str:
    """Text that others wrote, for Markdown: nothing in it is formatting."""
    return re.sub(r"([\\`*_{}\[\]<>#|~])", r"\\\1", one_line(text))


def _code(name: str) -> str:
    """A name as code in a table, with as many backticks around it as it needs."""
    ticks = "`" * (1 + max(map(len, re.findall("`+", name)), default=0))
    room = " " if "`" in name else ""
    return f"{ticks}{room}{one_line(name)}{room}{ticks}".replace("|", r"\|")


def _markdown(columns: Sequence[Shown], board: pd.DataFrame, tests: pd.DataFrame) -> str:
    return f"{caption(board, tests, _code, markdown)}\n\n{in_markdown(columns)}"


def in_markdown(columns: Sequence[Shown], names: int = 1) -> str:
    """A table whose first columns, so many, are names."""
    marks = "|".join("---" if column.left else "--:" for column in columns)
    lines = [f"| {' | '.join(column.heading for column in columns)} |", f"|{marks}|"]
    for row in zip(*(column.cells for column in columns), strict=True):
        lines.append(f"| {' | '.join([*map(_code, row[:names]), *map(markdown, row[names:])])} |")
    return "\n".join(lines)


def bibtex(version: str) -> str:
    """The entry of this program, as CITATION.cff has it."""
    return (
        f"@software{{gradebench,\n  title = {{{{GradeBench}}: a referee for gradient estimators of language-model rewards}},\n"
        f"  author = {{{{The GradeBench maintainers}}}},\n  version = {{{version}}},\n  year = {{2026}},\n}}"
    )


def methods(config: Mapping[str, Any], environment: Mapping[str, Any], board: pd.DataFrame, tests: pd.DataFrame) -> str:
    """A paragraph for the section on methods: what was run, how rates were chosen, what was tested, with which versions."""
    packages = environment.get("packages", {})
    said = []
    for task, plan in config.get("plans", {}).items():
        mine = board[board["task"] == task]
        names = [str(name) for name in mine.loc[~has_nothing(mine), "estimator"]]
        seeds = config.get("seeds", [])
        said.append(
            f"We trained {counted(len(names), 'gradient estimator')} ({', '.join(names)}) on {task} "
            f"({plan.get('setting', '')}), {_budget(plan)}with {counted(len(seeds), 'seed')}{_optimizer(plan)}."
        )
        given = config.get("rate_sources", {}).get(task, {})
        sources = dict.fromkeys(_SOURCES.get(given[name], given[name]) for name in names if name in given)
        if sources:
            said.append(f"Learning rates: {'; '.join(sources)}.")
        if not mine.empty:
            metric = str(mine["ranked_by"].iloc[0])
            used = tests[(tests["task"] == task) & (tests["metric"] == metric) & (tests["n_pairs"] > 0)]
            said.append(f"Estimators are ranked by the mean {metric_in_words(metric)} on held-out test prompts.")
            if not used.empty:
                said.append(
                    f"Pairs were compared by seed ({used['test'].iloc[0]}), with Holm's correction over "
                    f"{counted(used['family'].max(), 'pair')} at a level of {ALPHA:g}; intervals are at 95 %."
                )
    versions = ", ".join(
        f"{name} {packages[name]}" for name in ("gradebench", "torch", "transformers") if name in packages
    )
    said.append(f"All runs used {versions} and Python {environment.get('python', '?')} on {_device(environment)}.")
    return " ".join(said)


def _budget(plan: Mapping[str, Any]) -> str:
    """Steps and batch; nothing where a plan of another version doesn't have them."""
    if not {"steps", "batch"} <= set(plan):
        return ""
    return f"each for {counted(plan['steps'], 'step')} of {counted(plan['batch'], 'sampled sequence')}, "


def _optimizer(plan: Mapping[str, Any]) -> str:
    return f", by Adam with gradients clipped at a norm of {plan['clip']:g}" if "clip" in plan else ""


def _device(environment: Mapping[str, Any]) -> str:
    named = environment.get("gpu") or environment.get("processor")
    return f"{environment.get('device', 'cpu')} ({named})" if named else str(environment.get("device", "cpu"))
