"""The first screen of a report: what was run, on what, and by how much who leads."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from gradebench.analysis import pairwise, statistics, tables
from gradebench.analysis.runs import read_config
from gradebench.core.shown import counted
from gradebench.measurement.gradient_metrics import Interval
from gradebench.reporting import families, wording
from gradebench.reporting.columns import named

SIZES, NEAREST = 6, 2  # differences in the table, not significant and significant; the figure of pairs has all


def facts_of_runs(folders: Sequence[Path], environments: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """What is known of the runs as a whole: versions, date, commit and machine, each once where they agree."""
    found: dict[str, list[str]] = {}
    for environment in environments:
        packages = environment.get("packages", {})
        cores = counted(str(environment["cpu_count"]), "core") if environment.get("cpu_count") else ""
        versions = [f"{name} {packages[name]}" for name in ("gradebench", "torch") if packages.get(name)]
        versions += [f"Python {environment['python']}"] if environment.get("python") else []
        each = {
            "date": environment.get("date"),
            "versions": ", ".join(versions),
            "commit": environment.get("commit"),
            "hardware": ", ".join(
                str(part) for part in (environment.get("gpu"), environment.get("processor"), cores) if part
            ),
        }
        for name, said in each.items():
            if said and str(said) not in found.setdefault(name, []):
                found[name].append(str(said))
    several = {"runs": ", ".join(folder.resolve().name for folder in folders)} if len(folders) > 1 else {}
    return several | {name: "; ".join(said) for name, said in found.items() if said}


def facts_of_task(board: pd.DataFrame, rows: pd.DataFrame, folders: Sequence[Path]) -> dict[str, str]:
    """What was run on one task and setting: budget, seeds and estimators."""
    task = str(board["task"].iloc[0])
    plans = [plan for folder in folders if (plan := read_config(folder).get("plans", {}).get(task))]
    found = {"setting": str(board["setting"].iloc[0])}
    batches = sorted({plan["batch"] for plan in plans if isinstance(plan.get("batch"), int)})
    each = " or ".join(counted(batch, "sequence") for batch in batches)
    if steps := wording.at_steps(board):
        found["budget"] = f"{steps.removeprefix('at ')}{f' of {each}' if each else ''}"
    probed = [plan for plan in plans if plan.get("train") is False and isinstance(plan.get("probe_draws"), int)]
    if probed and each:
        places = (
            counted(probed[0]["checkpoints"], "checkpoint") if isinstance(probed[0].get("checkpoints"), int) else ""
        )
        where = "their own trajectories" if probed[0].get("along") == "own" else "the reference trajectory"
        found["probes"] = (
            f"{counted(probed[0]['probe_draws'], 'draw')} of {each}{f' at {places}' if places else ''}, along {where}"
        )
    seeds = sorted({int(seed) for seed in rows.loc[rows["status"] == "ok", "seed"]})
    if seeds:
        straight = seeds == list(range(seeds[0], seeds[-1] + 1)) and len(seeds) > 2
        listed = f"{seeds[0]} to {seeds[-1]}" if straight else ", ".join(map(str, seeds))
        found["seeds"] = f"{len(seeds)} ({listed})" if len(seeds) > 1 else f"1 (number {listed})"
    ran = int((board["n_seeds"] > 0).sum())
    without = [str(name) for name in board.loc[board["n_seeds"] == 0, "estimator"]]
    found["estimators"] = f"{ran} of {len(board)}; no result: {', '.join(without)}" if without else str(ran)
    return found


@dataclass(frozen=True)
class Sizes:
    """By how much: a sentence, a table of differences and how their intervals are meant."""

    sentence: str
    leads: pd.DataFrame  # of, over, difference, low, high, significant
    note: str
    pairs: int  # for which the intervals hold together


def sizes(ranked: pd.DataFrame, metrics: pd.DataFrame, against: Sequence[str] = ()) -> Sizes | None:
    """By how much the first one leads, or by how much others differ from each baseline; None with nothing to compare.

    `ranked` and `metrics` are of one task and setting. Of those that aren't significantly different from the first one,
    and of those that are, the nearest are in the table.
    """
    fair = ranked if against else ranked[ranked["tier"].notna()]
    if len(fair) < 2:
        return None
    metric = str(fair["ranked_by"].iloc[0])
    ((place, values),) = tables.per_seed(metrics, metric, "test")
    distinct = int((ranked["same_as"].fillna("") == "").sum())
    names = [str(name) for name in fair["estimator"]]
    baselines = [name for name in against if name in names]
    pairs = pairwise.family_size(distinct, len(baselines))
    if against:
        verdicts = dict(zip(names, fair["verdict"].astype(str), strict=True))
        chosen = [
            (name, baseline, f"not significantly different from {baseline}" not in verdicts[name].split("; "))
            for baseline in baselines
            for name in [name for name in names if name not in baselines][: SIZES + NEAREST]
            if baseline in verdicts[name]
        ]
        sentence = " ".join(_ends(row, metric) for row in fair.to_dict("records") if row["estimator"] in baselines)
    else:
        below = dict(zip(names, fair["p_vs_best_holm"].to_numpy(float) < statistics.ALPHA, strict=True))
        equal, apart = ([name for name in names[1:] if below[name] == wanted] for wanted in (False, True))
        chosen = [(names[0], name, below[name]) for name in [*equal[:SIZES], *apart[:NEAREST]]]
        counts = f" {len(apart)} of the {len(names) - 1} others are significantly below it." if len(names) > 2 else ""
        sentence = _ends(fair.iloc[0].to_dict(), metric) + counts
    rows = []
    for first, other, significant in chosen:
        differences = (values[first] - values[other]).dropna().to_numpy()
        if len(differences):
            generator = tables.named_generator("simultaneous", metric, *place, first, other)
            ends = statistics.simultaneous_interval(differences, generator, pairs)
            rows.append((first, other, float(differences.mean()), *ends, "yes" if significant else "no"))
    note = "Differences are paired by seed."
    if pairs > 1:
        note += (
            f" The intervals hold together, in 95 %, for all {counted(pairs, 'pair')} (Bonferroni); what is significant is decided by "
            "Holm's method, which is slightly sharper."
        )
    return Sizes(
        sentence, pd.DataFrame(rows, columns=["of", "over", "difference", "low", "high", "significant"]), note, pairs
    )


def _ends(row: Mapping[Any, Any], metric: str) -> str:
    """How high one ends."""
    return f"{row['estimator']} ends with a test {_mean(row, metric)}."


def _mean(row: Mapping[Any, Any], metric: str) -> str:
    """A metric in words, with its mean and 95 % interval."""
    value, *ends = (row[f"test_{metric}_{end}"] for end in ("mean", "ci_low", "ci_high"))
    interval = "" if any(pd.isna(end) for end in ends) else f" ({ends[0]:.3f} to {ends[1]:.3f})"
    return f"{wording.metric_in_words(metric)} of {value:.3f}{interval}"


def of_probes(board: pd.DataFrame, biases: Mapping[str, Interval]) -> list[str]:
    """What probes say: who has the smallest error and variance, and whose bias is significant, each by its own interval.

    `biases` are the relative squared biases at the last checkpoint.
    """
    measured = board[board["gradient_mse_relative"].notna()]
    said = []
    for column, words in (("gradient_mse_relative", "mean squared error"), ("gradient_variance_relative", "variance")):
        known = board[board[column].notna()].sort_values([column, "estimator"])
        if len(known) > 1:
            lowest = ", ".join(f"{named(row)} {row[column]:.3g}" for row in known.head(3).to_dict("records"))
            row = known.iloc[-1]
            said.append(f"Lowest relative {words}: {lowest}. Highest: {named(row.to_dict())} {row[column]:.3g}.")
    biased = sorted((name for name, one in biases.items() if one.low > 0), key=lambda name: -biases[name].value)
    free = sorted(name for name, one in biases.items() if one.low <= 0)
    if biased:
        each = ", ".join(f"{name} {biases[name].value:.3g}" for name in biased[:SIZES])
        more = f", and {len(biased) - SIZES} more" if len(biased) > SIZES else ""
        said.append(f"Significant bias at the last checkpoint in {len(biased)}; squared, relative: {each}{more}.")
    if free:
        said.append(f"No significant bias there in {len(free)}: {', '.join(free)}.")
    return said if len(measured) or biases else []


def families_of(board: pd.DataFrame) -> list[dict[str, str]]:
    """The legend: each family that a leaderboard has, with its sign."""
    present = {families.family_of(str(name)) for name in board["estimator"]}
    return [
        {"name": family, "style": f"f{number}", "shape": shape}
        for number, (family, shape) in enumerate(families.SHAPES.items())
        if family in present
    ]
