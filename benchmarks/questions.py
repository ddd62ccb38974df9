"""The tables of docs/questions: each command of a page, run again, and the table below it written anew.

    python benchmarks/questions.py           # writes them
    python benchmarks/questions.py --check   # says which differ
    python benchmarks/questions.py --growth  # the bias of importance weights by the length of texts, and its table (a minute)

Seconds for each page on one core. A page's commands are its bash blocks that begin with `gradebench enumerate`.
"""

import argparse
import contextlib
import io
import re
import shlex
import statistics
import sys
from pathlib import Path

import pandas as pd
import torch

from gradebench import SequenceProblem, cli
from gradebench.core.problem import Behaviour
from gradebench.core.sampler import Sampler
from gradebench.estimators.policy_gradient import PolicyGradient
from gradebench.measurement.expectation import expectation
from gradebench.measurement.moments import flatten
from gradebench.problems.enumerable import random_sequence_problem

ROOT = Path(__file__).parent.parent
PAGES = ROOT / "docs" / "questions"
GROWTH = ROOT / "results" / "questions" / "growth.csv"
LENGTHS, MODELS, WEIGHTS = range(1, 7), range(12), ("none", "token", "prefix", "sequence")
BLOCK = re.compile(r"```bash\n(gradebench enumerate (?:.|\n)*?)\n```\n\n(?:\|.*\n)*")


def table_of(command: str) -> str:
    """What a command prints."""
    out = io.StringIO()
    arguments = shlex.split(command.replace("\\\n", " "))
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
        before, sys.argv = sys.argv, arguments
        try:
            cli.app(arguments[1:], standalone_mode=False)
        finally:
            sys.argv = before
    return out.getvalue()


def renewed(text: str) -> str:
    """A page with the tables that its commands print now."""

    def block(found: re.Match[str]) -> str:
        return f"```bash\n{found[1]}\n```\n\n{table_of(found[1])}"

    return BLOCK.sub(block, text)


def bias_at(length: int, importance: str, models: range = MODELS) -> float:
    """The median of bias² over random models, whose texts of 6 tokens are cut at `length`; the sampler errs by 0.5 nats."""
    found = []
    for seed in models:
        whole = random_sequence_problem(2, LENGTHS[-1], 2, seed=seed)
        problem = SequenceProblem(whole.policy, whole.reward_model, whole.prompts, length, whole.categories)
        sampled = problem.sampled_by(Behaviour(Sampler(noise=0.5)))
        estimator = PolicyGradient(n=1, baseline="greedy", importance=importance)
        truth = flatten(problem.exact_gradient())
        found.append(expectation(estimator, sampled).compared(truth)["bias_squared"])
    return statistics.median(found)


def growth() -> None:
    """Write growth.csv, and its table into the page."""
    rows = [{"importance": name, "length": t, "bias_squared": bias_at(t, name)} for name in WEIGHTS for t in LENGTHS]
    GROWTH.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).to_csv(GROWTH, index=False)
    page = PAGES / "importance-weights.md"
    text = page.read_text(encoding="utf-8")
    page.write_text(
        re.sub(r"<!-- growth -->\n(\|.*\n)*", lambda _: f"<!-- growth -->\n{growth_table()}", text), encoding="utf-8"
    )


def growth_table() -> str:
    """The table of growth.csv as the page has it."""
    found = pd.read_csv(GROWTH)
    lines = [f"| weights | {' | '.join(f'T = {t}' for t in LENGTHS)} |", f"|---|{'--:|' * len(LENGTHS)}"]
    for name in WEIGHTS:
        values = found[found["importance"] == name].sort_values("length")["bias_squared"]
        lines.append(f"| `{name}` | {' | '.join('0' if value < 1e-14 else f'{value:.3g}' for value in values)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", nargs="*", help="names, default: all")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--growth", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.growth:
        growth()
        return
    differ = []
    for page in sorted(PAGES.glob("*.md")):
        if options.pages and page.stem not in options.pages:
            continue
        text = page.read_text(encoding="utf-8")
        new = renewed(text)
        if new != text:
            differ.append(page.name)
            if not options.check:
                page.write_text(new, encoding="utf-8")
        print(page.name, "differs" if new != text else "is current", flush=True)
    if options.check and differ:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
