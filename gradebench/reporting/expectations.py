"""What `gradebench enumerate` prints."""

import pandas as pd

from gradebench.reporting.columns import number
from gradebench.reporting.console import stdout_console
from gradebench.reporting.fitted import Shown, print_table
from gradebench.reporting.paper import in_markdown

_HEADINGS = {
    "bias_squared": "bias²",
    "bias_after_scaling": "after scaling",
    "cosine": "cosine",
    "length": "length",
    "variance": "variance",
    "mse": "MSE",
}
_ROUNDING = 1e-14  # squares of float64 sums below it are rounding


def show(found: pd.DataFrame, form: str) -> None:
    """The table on stdout: for people, as CSV with all digits, or to be pasted."""
    console = stdout_console()
    if form == "csv":
        console.file.write(found.to_csv(index=False))
        return
    columns = [Shown("estimator", list(found["estimator"]), left=True)]
    if found["task"].nunique() > 1:
        columns.insert(0, Shown("task", list(found["task"]), left=True))
    columns += [
        Shown(heading, [_written(name, value) for value in found[name]], place)
        for place, (name, heading) in enumerate(_HEADINGS.items())
    ]
    if form == "markdown":
        console.file.write(f"{in_markdown(columns, len(columns) - len(_HEADINGS))}\n")
        return
    print_table(console, "" if found["task"].nunique() > 1 else str(found["task"].iloc[0]), columns)
    console.say(
        "Exact, relative to the squared norm of the true gradient. bias²: of the mean gradient; after scaling: what is left of it "
        "for the best multiple of the gradient; length: of the mean gradient; variance: of one batch; MSE: bias² + variance."
    )


def _written(name: str, value: float) -> str:
    """Three digits, and 0 for what is only rounding."""
    if name in ("bias_squared", "bias_after_scaling") and abs(value) < _ROUNDING:
        return "0"
    return number(value, ".4f" if name == "cosine" else ".3g")
