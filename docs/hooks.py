"""What the site has besides the pages in this folder: pages made from the code and from committed results.

mkdocs calls the functions `on_...`. `python docs/hooks.py` writes docs/tables.md anew.
"""

import re
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import pandas as pd

from gradebench.core import schema

ROOT = Path(__file__).parents[1]
MAIN = "imdb-embedded-cpu"  # the committed run of all estimators
EXACT = "gradients-enumerable-lm"  # the committed probe with exact gradients


def on_config(config: Any) -> Any:
    """Adds the section of questions, which lists what its folder has."""
    pages = sorted(path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs" / "questions").glob("*.md"))
    if pages:
        config.nav = [*config.nav, {"Questions": pages}]
    return config


def on_files(files: Any, config: Any) -> Any:
    """Adds the generated pages, and the pictures outside docs/ that pages show."""
    from mkdocs.structure.files import File

    for name, text in {"commands.md": commands_page(), "gallery.md": gallery_page()}.items():
        files.append(File.generated(config, name, content=text))
    for page in [file for file in files if file.src_uri.endswith(".md")]:
        for picture in _pictures(page.content_string):
            if files.get_file_from_path(f"pictures/{picture}") is None:
                files.append(File.generated(config, f"pictures/{picture}", content=(ROOT / picture).read_bytes()))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Links out of docs/ lead nowhere on the site, so they become names of files in the repository."""
    up = "../" * page.file.src_uri.count("/")

    def name(found: re.Match[str]) -> str:
        text, path = found[1].strip("`"), found[2].split("#")[0]
        path = path.removeprefix("../" * path.count("../"))
        return f"`{path}`" if text.rstrip("/") in (path.rstrip("/"), Path(path).name) else f"{found[1]} (`{path}`)"

    outside = (
        r"((?:\.\./)+(?:results|benchmarks|tests|tasks|estimators|gradebench|README|CONTRIBUTING|CHANGELOG)[^)\s]*)"
    )
    markdown = re.sub(
        rf"!\[([^]]*)\]\({outside}\)",
        lambda m: f"![{m[1]}]({up}pictures/{m[2].replace('../', '')})",
        markdown,
    )
    return re.sub(rf"(?<!!)\[([^]]*)\]\({outside}\)", name, markdown)


def _pictures(markdown: str) -> list[str]:
    return re.findall(r"!\[[^]]*\]\((?:\.\./)+(results/[^)\s]*)\)", markdown)


def tables_page() -> str:
    """docs/tables.md: the data dictionary, from `gradebench.core.schema`."""
    lines = [
        "# Tables and columns",
        "",
        "Every file that a run, a probe or a tuning writes, and every column. This page is made from",
        "`gradebench/core/schema.py` by `python docs/hooks.py`. *Better* is the direction in which a value is better; a",
        "column is empty only where *empty if* says so. In CSV files an empty value is an empty field, in parquet a null,",
        'or "" in columns of text. [Reading the tables](howto/tables.md) has examples.',
        "",
        "| file | a row is |",
        "|---|---|",
    ]
    lines += [f"| [{table.file}](#{_anchor(table.file)}) | {table.row} |" for table in schema.TABLES]
    lines += ["", "## Metrics", "", "The names in the column `metric`. A name is one quantity, whatever the table.", ""]
    lines += ["| metric | unit | better | phase | meaning |", "|---|---|---|---|---|"]
    lines += [
        f"| `{one.name}` | {one.unit} | {one.better} | {one.where} | {one.meaning} |" for one in schema.METRICS.values()
    ]
    lines += [
        "",
        "A metric of a plug-in's own (`info_NAME` of an estimator, what a task's `evaluate` returns) has no unit here.",
        "",
    ]
    for table in schema.TABLES:
        lines += [f"## {table.file}", "", f"A row is {table.row}.", ""]
        lines += ["| column | kind | unit | better | empty if | meaning |", "|---|---|---|---|---|---|"]
        for same, columns in groupby(
            table.columns, lambda one: (one.kind, one.unit, one.better, one.empty, one.meaning)
        ):
            names = ", ".join(f"`{column.name}`" for column in columns)
            lines.append(f"| {names} | {' | '.join(same)} |")
        lines.append("")
    return "\n".join(lines)


def _anchor(title: str) -> str:
    return re.sub(r"[\s]+", "-", re.sub(r"[^\w\s-]", "", title.lower()))


def commands_page() -> str:
    """The command line's commands and options, from the program."""
    import typer.main

    from gradebench import cli

    group: Any = typer.main.get_command(cli.app)
    lines = ["# Command line", "", "Made from the program; `gradebench COMMAND --help` prints the same.", ""]
    for name, command in sorted(group.commands.items()):
        if command.hidden:
            continue
        lines += [f"## gradebench {name}", "", _plain(command.help or ""), ""]
        rows = [row for parameter in command.params if (row := _option(parameter))]
        if rows:
            lines += ["| option | default | |", "|---|---|---|", *rows, ""]
    return "\n".join(lines)


def _option(parameter: Any) -> str:
    if getattr(parameter, "hidden", False):
        return ""
    names = [parameter.metavar or parameter.name.upper()] if parameter.param_type_name == "argument" else parameter.opts
    default = (
        "" if callable(parameter.default) or parameter.default in (None, False, [], ()) else str(parameter.default)
    )
    shown = f"`{default}`" if default else ""
    return f"| {', '.join(f'`{one}`' for one in names)} | {shown} | {_plain(getattr(parameter, 'help', '') or '')} |"


def _plain(text: str) -> str:
    """Help as Markdown: one paragraph a block, without what would be read as markup."""
    blocks = [" ".join(block.split()) for block in text.replace("\b", "").split("\n\n")]
    safe = "\n\n".join(blocks).replace("|", "\\|").replace("<", "&lt;").replace("\\[", "[")
    return safe.replace("*", "\\*").replace("_", "\\_") if "`" not in safe else safe


def gallery_page() -> str:
    """Each estimator's card, with what the committed runs measured."""
    from gradebench.plugins.registry import entries

    board = pd.read_csv(ROOT / "results" / MAIN / "leaderboard.csv").set_index("estimator")
    probes = pd.read_csv(ROOT / "results" / EXACT / "probes.csv")
    exact = probes[probes["group"].isna() & (probes["step"] == 0)].drop_duplicates(["estimator", "metric"])
    wide = exact.set_index(["estimator", "metric"])
    builtin = [entry for entry in entries("estimators").values() if entry.builtin]
    lines = [
        "# Gallery of estimators",
        "",
        "Each estimator's card, from its docstring, and beside it what was measured: *exact* on `enumerable-lm` at the start",
        f"of training, against the exact gradient (`results/{EXACT}`, 95 % intervals over draws); *imdb* in the main job, 40",
        f"steps, 14 seeds (`results/{MAIN}`). Bias² and variance are of one batch's gradient, relative to the squared true",
        "gradient. `-`: not measured there, or too noisy to report. [The catalogue](estimators.md) has the cards as tables.",
        "",
    ]
    for family, members in groupby(
        sorted(builtin, key=lambda one: (one.card["family"], one.name)), lambda e: e.card["family"]
    ):
        lines += [f"## {family[0].upper()}{family[1:]}", ""]
        for entry in members:
            lines += [f"### {entry.name}", "", entry.summary, ""]
            lines += [f"- **Bias**: {entry.card['bias']}", f"- **Requires**: {entry.card['assumptions']}"]
            lines += [f"- **Cost a call**: {entry.card['cost']}", f"- **Source**: {entry.card['references']}", ""]
            lines += [*_measured(entry.name, board, wide), ""]
    return "\n".join(lines)


def _measured(name: str, board: pd.DataFrame, wide: pd.DataFrame) -> Iterator[str]:
    """The rows of measured values of one estimator."""
    yield "| measured | bias² | variance | direction error | cost |"
    yield "|---|--:|--:|--:|--:|"
    cells = []
    for metric in ("gradient_bias_relative", "gradient_variance_relative", "gradient_direction_error"):
        row = wide.loc[(name, metric)] if (name, metric) in wide.index else None
        cells.append("-" if row is None else _with_ends(row["value"], row["ci_low"], row["ci_high"]))
    cost = wide.loc[(name, "cost_reward_calls"), "value"] if (name, "cost_reward_calls") in wide.index else float("nan")
    yield f"| exact | {' | '.join(cells)} | {'-' if pd.isna(cost) else f'{cost:g} reward calls a gradient'} |"
    if name in board.index:
        row = board.loc[name]
        cells = []
        for column in ("gradient_bias_squared", "gradient_variance_relative", "gradient_direction_error"):
            cells.append(_with_ends(row[column], row[f"{column}_ci_low"], row[f"{column}_ci_high"]))
        seconds = row["seconds_per_step"]
        yield f"| imdb | {' | '.join(cells)} | {'-' if pd.isna(seconds) else f'{seconds:.3f} s a step'} |"


def _with_ends(value: float, low: float, high: float) -> str:
    if pd.isna(value):
        return "-"
    return f"{value:.3g}" if pd.isna(low) else f"{value:.3g} ({low:.3g} to {high:.3g})"


if __name__ == "__main__":
    (ROOT / "docs" / "tables.md").write_text(tables_page(), encoding="utf-8")
