"""A run as one HTML file: no script, nothing fetched, readable on a phone, on paper and in the dark."""

import html
import math
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from gradebench import claims, statistics, svg, tables
from gradebench.records import SAMPLES, read_lines
from gradebench.registry import entries
from gradebench.runs import cell_statuses, read_json, read_metrics

_PICTURE = re.compile(r'(<svg [^>]*aria-label="([^"]*)".*?</svg>)', re.DOTALL)
_NO_NAME = re.compile(r"[^a-z0-9]+")
WRITERS = 3  # estimators whose texts are shown
CURVES = 8  # estimators in the figure of learning curves: more would hide each other

_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --faint: #57606a; --rule: #d0d7de; --page: #ffffff; --wash: #f6f8fa;
  --c0: #0060a8; --c1: #b34700; --c2: #00704f; --c3: #9c3f78; --c4: #7a5900; --c5: #1f6f9c; --c6: #333333; --c7: #6b6b6b; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --faint: #9aa4af; --rule: #3d444d; --page: #0d1117;
  --wash: #161b22; --c0: #6cb6ff; --c1: #ff9d5c; --c2: #4fd1a5; --c3: #f0a3d0; --c4: #e3c14f; --c5: #8fd3ff;
  --c6: #dddddd; --c7: #aaaaaa; } }
body { margin: 0 auto; max-width: 60rem; padding: 1rem; font: 16px/1.5 system-ui, sans-serif; color: var(--ink);
  background: var(--page); }
h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; border-top: 1px solid var(--rule); padding-top: 1rem; }
h3 { font-size: 1rem; } code, pre { font: 0.9em/1.4 ui-monospace, monospace; background: var(--wash); }
pre { padding: 0.6rem; white-space: pre-wrap; overflow-wrap: anywhere; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: 0.85rem; }
th, td { padding: 0.25rem 0.6rem; border-bottom: 1px solid var(--rule); text-align: right; white-space: nowrap; }
th:first-child, td:first-child, .text { text-align: left; } td.text { white-space: normal; min-width: 14rem; }
thead th { color: var(--faint); font-weight: 600; } tr.new-tier td { border-top: 2px solid var(--faint); }
figure { margin: 1rem 0; } figcaption { color: var(--faint); font-size: 0.9rem; } summary { cursor: pointer; }
svg { width: 100%; min-width: 36rem; height: auto; } svg text { fill: var(--ink); font-size: 12px; } .grid { stroke: var(--rule); } .leader { stroke: var(--faint); }
svg text.label { stroke: none; } .bar { stroke-width: 2; } .line { fill: none; stroke-width: 2; } svg .band { opacity: 0.18; stroke: none; }
.verdict { font-weight: 700; }
@media print { details > * { display: block; } h2 { break-after: avoid; } figure { break-inside: avoid; } }
""" + "".join(
    f".c{i} {{ stroke: var(--c{i}); }} .dot.c{i}, .band.c{i}, text.c{i} {{ fill: var(--c{i}); }}\n"
    for i in range(svg.COLOURS)
)

# heading, column of the leaderboard, format
_BOARD = (
    ("estimator", "estimator", ""), ("rank", "rank", ".0f"), ("tier", "tier", ".0f"), ("seeds", "n_seeds", ".0f"),
    ("test reward", "test_reward_mean", ".3f"), ("95 % from", "test_reward_ci_low", ".3f"),
    ("to", "test_reward_ci_high", ".3f"), ("p against best", "p_vs_best_holm", ".3g"),
    ("gold reward", "test_gold_reward_mean", ".3f"), ("train-test", "generalization_gap", "+.3f"),
    ("KL, nats", "kl_mean", ".2f"), ("variance", "gradient_variance", ".3g"),
    ("relative", "gradient_variance_relative", ".3g"), ("bias²", "gradient_bias_squared", ".2f"),
    ("cosine", "gradient_cosine", ".2f"), ("s/step", "seconds_per_step", ".3f"),
    ("memory, MB", "peak_memory_mb", ".0f"), ("status", "status", ""),
)  # fmt: skip

# columns of the leaderboard across and up, which axes are logarithmic, what it shows
_SCATTERS = (
    ("kl_mean", "test_reward_mean", (False, False), "Reward against the divergence paid for it, in nats a sequence."),
    (
        "test_gold_reward_mean",
        "test_reward_mean",
        (False, False),
        "The reward trained on against an independent judge: one far above the others for the same gold reward is gamed.",
    ),
    (
        "gradient_variance_relative",
        "gradient_bias_squared",
        (True, False),
        "Relative variance against relative squared bias: low variance is worth nothing where the gradient points elsewhere.",
    ),
    (
        "seconds_per_step",
        "gradient_variance",
        (True, True),
        "Variance against seconds a step, at the same number of sampled sequences.",
    ),
)
_AXES = {
    "kl_mean": "KL to the reference, nats",
    "test_reward_mean": "test reward",
    "test_gold_reward_mean": "gold reward",
    "gradient_variance_relative": "relative variance",
    "gradient_bias_squared": "relative squared bias",
    "seconds_per_step": "seconds a step",
    "gradient_variance": "variance",
}


def write_report(
    run: Path, metrics: pd.DataFrame | None = None, board: pd.DataFrame | None = None, plots: bool = False
) -> list[Path]:
    """Writes report.html into the run's folder, and with `plots` each of its figures; returns their paths.

    The run's tables are read and made where they aren't given.

    Raises        InputError where the folder holds no run that can be read.
    """
    metrics = read_metrics([run]) if metrics is None else metrics
    board = tables.leaderboard(metrics, tables.comparisons(metrics)) if board is None else board
    content = page(run, metrics, board)
    written = [run / "report.html"]
    written[0].write_text(content, encoding="utf-8")
    for number, picture in enumerate(_PICTURE.findall(content) if plots else [], 1):
        (run / "plots").mkdir(exist_ok=True)
        label = html.unescape(picture[1]).split(":")[0].split(".")[0]
        written.append(run / "plots" / f"{number}-{_NO_NAME.sub('-', label.lower()).strip('-')}.svg")
        written[-1].write_text(svg.alone(picture[0], _STYLE), encoding="utf-8")
    return written


def page(run: Path, metrics: pd.DataFrame, board: pd.DataFrame) -> str:
    """The report: verdict, leaderboard and figures of each task, then claims, estimators, and how it was made."""
    config, environment = read_json(run / "config.json"), read_json(run / "environment.json")
    title = f"GradeBench: {run.resolve().name}"
    samples = read_lines(run / SAMPLES)
    parts = [f"<h1>{_e(title)}</h1>"]
    for (task, setting), mine in board.groupby(["task", "setting"], sort=False):
        rows = metrics[(metrics["task"] == task) & (metrics["setting"] == setting)]
        texts = [one for one in samples if (one["task"], one["setting"]) == (task, setting)]
        parts += _of_task(str(task), str(setting), mine, rows, texts)
    parts += _claims(metrics)
    parts += _cards(sorted(set(board["estimator"])))
    parts += _made(run, config, environment)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{_e(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{_STYLE}</style></head>\n<body>\n" + "\n".join(parts) + "\n</body></html>\n"
    )


def _of_task(
    task: str, setting: str, board: pd.DataFrame, metrics: pd.DataFrame, samples: Sequence[Mapping[str, Any]]
) -> list[str]:
    ranked = board[board["rank"].notna()]
    parts = [
        f"<h2>{_e(task)}</h2>",
        f"<p><code>{_e(setting)}</code></p>",
        f"<p class=verdict>{_e(verdict(ranked))}</p>",
    ]
    shown = board.assign(peak_memory_mb=board["peak_memory_bytes"] / 1e6)
    parts.append(_table(shown, _BOARD, tier=True))
    parts.append(
        "<p>Test reward is the mean over seeds with its 95 % interval (bootstrap-t); estimators whose difference is not "
        "supported (paired by seed, permutation test, Holm over all pairs) share a tier. Variance is that of one "
        "gradient estimate, relative to its squared mean; bias² is over the squared true gradient.</p>"
    )
    if len(ranked):
        columns = ["estimator", "test_reward_mean", "test_reward_ci_low", "test_reward_ci_high"]
        rows = [(str(name), float(x), float(a), float(b)) for name, x, a, b in ranked[columns].itertuples(index=False)]
        parts.append(_figure(svg.forest(rows, "test reward"), "Test reward with its 95 % interval.", ranked, columns))
    parts += _curves(ranked, metrics)
    for x, y, logs, caption in _SCATTERS:
        parts += _scatter(board, x, y, logs, caption)
    parts += _samples(ranked, samples)
    front = tables.pareto_front(board)
    if front:
        parts.append(
            f"<p>Nothing else is at least as good in test reward, relative variance and seconds a step, and better in one, "
            f"than each of: {_e(', '.join(front))}. The front goes by the estimates; it tests nothing.</p>"
        )
    return parts


def verdict(ranked: pd.DataFrame) -> str:
    """The first tier in one sentence."""
    if ranked.empty:
        return "No estimator has a test reward here."
    first = [str(name) for name in ranked.loc[ranked["tier"] == 1, "estimator"]]
    seeds = int(ranked["n_seeds"].max())
    if len(first) == len(ranked) > 1:
        return f"No difference between {len(ranked)} estimators is supported by {seeds} seeds."
    if len(first) == 1:
        return f"{first[0]} ends highest: above each other estimator, or each but its equals, at {seeds} seeds."
    return f"{', '.join(first[:-1])} and {first[-1]} end highest, and can't be told apart at {seeds} seeds."


def _curves(ranked: pd.DataFrame, metrics: pd.DataFrame) -> list[str]:
    """Test reward by step of the highest estimators."""
    rows = metrics[(metrics["phase"] == "evaluation") & (metrics["split"] == "test") & (metrics["metric"] == "reward")]
    rows = rows[(rows["status"] == "ok") & np.isfinite(rows["value"])]
    series: dict[str, list[tuple[float, float, float, float]]] = {}
    for name in list(ranked["estimator"])[:CURVES]:
        for step, values in rows[rows["estimator"] == name].groupby("step")["value"]:
            rng = tables.named_generator("report", str(name), str(step))
            low, high = statistics.mean_interval(values.to_numpy(), rng, resamples=2000)
            series.setdefault(str(name), []).append((float(step), float(values.mean()), low, high))
    if not series:
        return []
    table = pd.DataFrame(
        [(name, *point) for name, line in series.items() for point in line],
        columns=["estimator", "step", "test_reward", "ci_low", "ci_high"],
    )
    caption = f"Test reward by step, with 95 % bands, of the {len(series)} highest."
    return [_figure(svg.curves(series, "step", "test reward"), caption, table, list(table.columns))]


def _scatter(board: pd.DataFrame, x: str, y: str, logs: tuple[bool, bool], caption: str) -> list[str]:
    points = {}
    for name, a, b in board[["estimator", x, y]].itertuples(index=False):
        values = ((a, logs[0]), (b, logs[1]))
        if all(not pd.isna(v) and math.isfinite(v) and (v > 0 or not log) for v, log in values):
            points[str(name)] = (float(a), float(b))
    if len(points) < 2:
        return []
    left_out = [str(name) for name in board["estimator"] if name not in points]
    if left_out:
        caption += f" Without a number for it: {', '.join(left_out)}."
    picture = svg.scatter(points, _AXES[x], _AXES[y], logs)
    return [_figure(picture, caption, board[board["estimator"].isin(points)], ["estimator", x, y])]


def _samples(ranked: pd.DataFrame, samples: Sequence[Mapping[str, Any]]) -> list[str]:
    """Texts on test prompts side by side: before training, then by the highest estimators, all with the same noise."""
    chosen = list(ranked["estimator"])[:WRITERS]
    mine = [one for one in samples if one["split"] == "test" and one["estimator"] in chosen]
    if not mine:
        return []
    seed = min(one["seed"] for one in mine)
    rows: dict[int, dict[str, str]] = {}
    for one in sorted(mine, key=lambda one: (one["number"], one["step"])):
        if one["seed"] == seed:
            who = "before training" if one["step"] == 0 else str(one["estimator"])
            row = rows.setdefault(int(one["number"]), {"prompt": str(one["prompt"])})
            row[who] = f"{str(one['text']).removeprefix(str(one['prompt']))} ({one['reward']:.2f})"
    columns = [(name, name, "text") for name in ("prompt", "before training", *chosen)]
    frame = pd.DataFrame(list(rows.values())).reindex(columns=[name for name, _, _ in columns])
    note = f"<p>How test prompts are continued at the end, seed {seed}, with the reward; the same noise for all.</p>"
    return ["<h3>Samples</h3>", note, _table(frame, columns)]


def _claims(metrics: pd.DataFrame) -> list[str]:
    verdicts = claims.judge(claims.read_claims(), metrics)
    tested = verdicts[verdicts["verdict"] != "untested"]
    if tested.empty:
        return []
    rows = tested.assign(
        interval=[f"{a:.3g} to {b:.3g}" for a, b in zip(tested["ci_low"], tested["ci_high"], strict=True)]
    )
    columns = (
        ("claim", "says", "text"), ("verdict", "verdict", ""), ("claimed", "claimed", ""), ("measured", "measured", ".3g"),
        ("95 % interval", "interval", ""), ("seeds", "n_pairs", ".0f"), ("p (Holm)", "p_holm", ".3g"),
        ("seeds needed", "seeds_needed", ".0f"), ("source", "source", "text"),
    )  # fmt: skip
    note = "<p>A verdict is about a claim in these settings, of task, scale and budget; papers had others.</p>"
    return ["<h2>Published claims</h2>", _table(rows, columns), note]


def _cards(names: Sequence[str]) -> list[str]:
    """What each registered estimator says of itself, read without importing it."""
    known = entries("estimators")
    parts = []
    for name in names:
        card = known[name].card if name in known else {}
        items = "".join(f"<tr><td>{_e(key)}</td><td class=text>{_e(text)}</td></tr>" for key, text in card.items())
        if items:
            parts.append(f"<details><summary><code>{_e(name)}</code></summary><table>{items}</table></details>")
    return ["<h2>The estimators</h2>", *parts] if parts else []


def _made(run: Path, config: Mapping[str, Any], environment: Mapping[str, Any]) -> list[str]:
    """How to repeat it, on what it ran, and every cell that isn't ok."""
    parts = ["<h2>How it was made</h2>"]
    if config:
        parts.append(f"<p>To repeat it:</p><pre>{_e(command_of(config.get('request', {})))}</pre>")
        failed = [cell for cell in cell_statuses(run) if cell.status != "ok"]
        if failed:
            frame = pd.DataFrame([vars(cell) for cell in failed])
            counted = frame.groupby(["status", "reason"], as_index=False).agg(
                cells=("cell", "size"), first=("cell", "first")
            )
            columns = (
                ("status", "status", ""),
                ("cells", "cells", ".0f"),
                ("such as", "first", ""),
                ("reason", "reason", "text"),
            )
            parts.append(_table(counted, columns))
    facts = dict(environment.get("packages", {})) | {k: v for k, v in environment.items() if k != "packages"}
    items = "".join(
        f"<tr><td>{_e(str(key))}</td><td class=text>{_e(str(value))}</td></tr>" for key, value in facts.items()
    )
    parts.append(f"<details><summary>versions and machine</summary><table>{items}</table></details>" if items else "")
    for task, settings in config.get("tasks", {}).items():
        items = "".join(f"<tr><td>{_e(str(k))}</td><td class=text>{_e(str(v))}</td></tr>" for k, v in settings.items())
        parts.append(f"<details><summary>task {_e(str(task))}</summary><table>{items}</table></details>")
    return parts


def command_of(request: Mapping[str, Any]) -> str:
    """The command line of a request, without its folder."""
    words = ["gradebench", "run"] if request.get("train", True) else ["gradebench", "probe"]
    for name, values in (("-e", request.get("estimators", [])), ("-t", request.get("tasks", []))):
        words += [word for value in values for word in (name, str(value))]
    for name in ("seeds", "steps", "batch", "learning_rate"):
        if request.get(name) is not None:
            words += [f"--{name.replace('_', '-')}", str(request[name])]
    return shlex.join(words)


def _figure(picture: str, caption: str, data: pd.DataFrame, columns: Sequence[str]) -> str:
    """A picture, what it shows in words, and its numbers."""
    shown = _table(data, [(name.replace("_", " "), name, ".4g") for name in columns])
    return (
        f"<figure><div class=wide>{picture}</div><figcaption>{_e(caption)}</figcaption>"
        f"<details><summary>the numbers</summary>{shown}</details></figure>"
    )


def _table(frame: pd.DataFrame, columns: Sequence[tuple[str, str, str]], tier: bool = False) -> str:
    head = "".join(
        f"<th scope=col{' class=text' if form == 'text' else ''}>{_e(heading)}</th>" for heading, _, form in columns
    )
    body, last = [], None
    for row in frame.to_dict("records"):
        cells = "".join(_cell(row[column], form) for _, column, form in columns)
        begins = tier and last is not None and row["tier"] is not pd.NA and row["tier"] != last
        last = row.get("tier") if tier else None
        body.append(f"<tr{' class=new-tier' if begins else ''}>{cells}</tr>")
    return f"<div class=wide><table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"


def _cell(value: Any, form: str) -> str:
    if isinstance(value, str):
        return f"<td{' class=text' if form == 'text' else ''}>{_e(value)}</td>"
    if value is None or pd.isna(value):
        return "<td>-</td>"
    return f"<td>{_e(format(value, form))}</td>"


def _e(text: str) -> str:
    return html.escape(text)
