"""Published claims as data: each is a hypothesis about two estimators of a run, tested on values paired by seed."""

import functools
import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from gradebench.analysis import power, provenance, statistics, tables
from gradebench.analysis.groups import Group, groups_of, values_of
from gradebench.core.errors import InputError

BUILT_IN = Path(__file__).with_name("claims.toml")
OUT_OF_REACH = "cannot be decided: the bound is out of reach"
SEEDS = "0-9"  # in the commands that would test a claim
COLUMNS = [
    "claim", "task", "setting", "verdict", "measured", "ci_low", "ci_high", "effect_size", "claimed", "n_pairs", "p_value",
    "p_holm", "power", "detectable", "seeds_needed", "reason", "says", "source", "steps",
]  # fmt: skip


@dataclass(frozen=True)
class Claim:
    """The ratio or difference of `a` and `b` in a metric, or the value of `a` alone, is at least, or at most, a bound.

    See claims.toml.

    `margin` loosens the bound, for a claim that one is no worse than the other; `highest` is the largest possible value
    of the metric, which shows whether the claim could be true at all.
    """

    id: str
    says: str
    source: str
    task: str
    a: str
    metric: str
    form: str
    b: str = ""
    split: str = "test"
    at_least: float | None = None
    at_most: float | None = None
    margin: float = 0.0
    highest: float | None = None

    def __post_init__(self) -> None:
        if self.form not in ("difference", "ratio", "value"):
            raise InputError(f"claim {self.id}: form {self.form!r} is neither difference, ratio nor value")
        if (self.form == "value") == bool(self.b):
            raise InputError(f"claim {self.id}: the value of a has no b; a difference and a ratio have one")
        if (self.at_least is None) == (self.at_most is None):
            raise InputError(f"claim {self.id}: give one of at_least and at_most")
        if not 0 <= self.margin < math.inf:
            raise InputError(f"claim {self.id}: a margin is 0 or above, not {self.margin:g}")
        if self.form == "ratio" and not self.bound > 0:
            raise InputError(f"claim {self.id}: a ratio's bound is above 0, not {self.bound:g}")

    @property
    def bound(self) -> float:
        """The bound that is tested: as claimed, loosened by the margin."""
        if self.at_least is not None:
            return self.at_least - self.margin
        assert self.at_most is not None
        return self.at_most + self.margin

    @property
    def claimed(self) -> str:
        """The claim as text, such as "rloo / ppo >= 1.5"."""
        sides = f"{self.a} {'/' if self.form == 'ratio' else '-'} {self.b}" if self.b else f"{self.metric} of {self.a}"
        margin = f" (with a margin of {self.margin:.4g})" if self.margin else ""
        return f"{sides} {'>=' if self.at_least is not None else '<='} {self.bound:.4g}{margin}"

    def out_of_reach(self, b: statistics.Floats) -> str:
        """Why no value of `a` could reach the bound, given these of `b`; "" if one could."""
        if not self.b or self.at_least is None or self.highest is None or not len(b):
            return ""
        mean = float(b.mean())
        most = self.highest / mean if self.form == "ratio" and mean else self.highest - mean
        if (self.form == "ratio" and mean <= 0) or most >= self.bound:
            return ""
        sign = "/" if self.form == "ratio" else "-"
        return (
            f"{self.b} has {mean:.3g} and the metric ends at {self.highest:g}, so that {self.a} {sign} {self.b} is at most "
            f"{most:.3g}"
        )

    @property
    def command(self) -> str:
        """The command of a run that would test the claim."""
        return " ".join(["gradebench run", *(f"-e {name}" for name in self.sides), f"-t {self.task} --seeds {SEEDS}"])

    @property
    def sides(self) -> list[str]:
        """The labels of the estimators that it is about."""
        return [self.a, self.b] if self.b else [self.a]


def read_claims(path: Path = BUILT_IN) -> list[Claim]:
    """The claims of a TOML file.

    Raises        InputError for another file, unknown, missing or mistyped entries, and duplicate ids.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"can't read {path}: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{path} is no TOML: {error}") from error
    entries = content.get("claim")
    if not isinstance(entries, list) or not entries:
        raise InputError(f"{path} has no [[claim]]")
    claims = [_claim(entry, number) for number, entry in enumerate(entries, 1)]
    twice = {claim.id for claim in claims if sum(other.id == claim.id for other in claims) > 1}
    if twice:
        raise InputError(f"{path} has the claim {min(twice)} twice")
    return claims


def _claim(entry: Mapping[str, Any], number: int) -> Claim:
    name = f"claim {entry.get('id', number)}"
    numbers = ("at_least", "at_most", "margin", "highest")
    types = {field.name: (int, float) if field.name in numbers else str for field in fields(Claim)}
    for key, value in entry.items():
        if key not in types:
            raise InputError(f"{name}: unknown entry {key!r}; there are {', '.join(types)}")
        if (
            not isinstance(value, types[key])
            or isinstance(value, bool)
            or (isinstance(value, float) and math.isnan(value))
        ):
            raise InputError(f"{name}: {key} = {value!r} is no {'number' if key in numbers else 'text'}")
    required = [field.name for field in fields(Claim) if field.name not in ("b", "split", *numbers)]
    lacking = [key for key in required if key not in entry]
    if lacking:
        raise InputError(f"{name}: lacks {', '.join(lacking)}")
    return Claim(**entry)


def about(claims: Sequence[Claim], names: Sequence[str]) -> list[Claim]:
    """The claims about any of the names; all claims without names.

    Raises        InputError for a name that no claim has.
    """
    known = sorted({side for claim in claims for side in claim.sides})
    for name in names:
        if name not in known:
            raise InputError(f"--against {name}: no claim is about it; there are claims about {', '.join(known)}")
    return [claim for claim in claims if not names or set(claim.sides) & set(names)]


def judge(claims: Sequence[Claim], metrics: pd.DataFrame) -> pd.DataFrame:
    """One row per claim and setting of its task, COLUMNS; claims that the run can't test come last, `untested`.

    With          for each seed d_s = a_s - bound - b_s for a difference, a_s - bound for a value, a_s - bound b_s for a ratio,
                  or ln a_s - ln b_s - ln bound for a ratio of variances; the paired sign-flip test of mean d = 0, with
                  Holm's correction over the file
    verdict       supported or contradicted if p_holm < 0.05, by the sign of d; underpowered if no outcome could have
                  been significant, or fewer than two seeds have both; else not distinguishable. OUT_OF_REACH, with
                  the reason, if even the highest value of the metric wouldn't reach the bound given b
    measured      the difference, ratio or value itself, with its 95 % interval (Fieller's for a ratio of means)
    effect_size   of d: standardised, paired (`statistics.effect_size`); 0 is at the bound
    power         of the test with these seeds, if the true value is the measured one, at Bonferroni's level
    detectable    the smallest distance of the true value from the bound that these seeds detect with a power of 0.8:
                  in units of the difference, as a factor for a ratio of variances; infinite if there is none
    seeds_needed  for undecided claims: the seeds for that power, if the true value is the measured one
    steps         the budget: the last step at which test prompts were evaluated
    reason        of untested claims, with a command that would test them; and why a bound is out of reach
    """
    ran = functools.cache(functools.partial(_ran, metrics))
    rows = [row for claim in claims for row in _rows(claim, ran(claim.task))]
    adjusted = statistics.holm([row["p_value"] for row in rows])
    family = int(np.count_nonzero(~np.isnan(adjusted)))
    for row, p_holm in zip(rows, adjusted, strict=True):
        contrast = row.pop("contrast")
        row["p_holm"] = float(p_holm)
        if contrast is not None:
            row |= _verdict(row, contrast, family)
    table = pd.DataFrame(rows, columns=COLUMNS)
    return table.sort_values("verdict", key=lambda verdicts: verdicts == "untested", kind="stable", ignore_index=True)


@dataclass(frozen=True)
class _Ran:
    """What the run has of one task, whatever its options; the claims about it share this."""

    groups: Sequence[Group]
    rows: Mapping[Any, pd.DataFrame]  # by task and setting
    last: Mapping[Any, float]  # by setting


def _ran(metrics: pd.DataFrame, task: str) -> _Ran | None:
    mine = metrics[metrics["task"].str.partition(":")[0] == task]
    if mine.empty:
        return None
    last = _last_steps(mine)
    return _Ran(list(groups_of(mine)), dict(iter(mine.groupby(["task", "setting"]))), last)


def _rows(claim: Claim, ran: _Ran | None) -> list[dict[str, Any]]:
    """One row for each setting of the task, with the `contrast` of its seeds; if there is none, one row that says why."""
    named = {"claim": claim.id, "claimed": claim.claimed, "says": claim.says, "source": claim.source}
    empty = {"task": claim.task, "verdict": "untested", "p_value": math.nan, "n_pairs": 0, "contrast": None}
    if ran is None:
        reason = f"the run has no task {claim.task}; this would test it: {claim.command}"
        return [named | empty | {"reason": reason}]
    rows = []
    for group in ran.groups:
        values = values_of(group, claim.metric, claim.split)
        place = {"task": group.task, "setting": group.setting, "steps": ran.last.get(group.setting, math.nan)}
        lacking = [name for name in claim.sides if name not in values.columns]
        if lacking:
            reason = f"the run has no {claim.metric} of {' and '.join(lacking)}; this would test it: {claim.command}"
            rows.append(named | empty | place | {"reason": reason})
            continue
        here = ran.rows[group.task, group.setting]
        if not claim.metric.startswith("gradient_") and (unfair := _unfair(claim, here)):
            rows.append(named | empty | place | {"reason": unfair})
            continue
        both = values[claim.sides].replace([math.inf, -math.inf], math.nan).dropna()
        rows.append(named | place | {"verdict": ""} | _measured(claim, both, f"{group.task} {group.setting}"))
    return rows


def _unfair(claim: Claim, rows: pd.DataFrame) -> str:
    """Why the learning rates of the two make them incomparable; "" if they don't."""
    if not claim.b:
        return ""
    rates = provenance.ran(rows)
    a, b = rates[claim.a], rates[claim.b]
    return (
        "" if provenance.comparable(a, b) else f"{provenance.verdict(a, b)}; this would test it: {claim.command} --tune"
    )


def _last_steps(metrics: pd.DataFrame) -> dict[Any, float]:
    """The budget of each setting: the last step at which test prompts were evaluated."""
    tested = metrics[(metrics["phase"] == "evaluation") & (metrics["split"] == "test")]
    return {setting: float(step) for setting, step in tested.groupby("setting")["step"].max().items()}


def _measured(claim: Claim, both: pd.DataFrame, place: str) -> dict[str, Any]:
    a = both[claim.a].to_numpy()
    b = both[claim.b].to_numpy() if claim.b else np.zeros_like(a)
    log = claim.metric == "gradient_variance" and claim.form == "ratio"
    if log:
        a, b = np.log(a), np.log(b)

    if claim.form == "ratio":
        contrast = a - b - math.log(claim.bound) if log else a - claim.bound * b
    else:
        contrast = a - b - claim.bound
    generator = tables.named_generator("claims", claim.id, place)
    measured, low, high = math.nan, math.nan, math.nan
    if len(a):
        mean = float((a - b).mean())
        measured, (low, high) = mean, statistics.difference_interval(a - b, generator)
        if log:
            measured, low, high = map(_exp, (mean, low, high))
        elif claim.form == "ratio":
            measured, (low, high) = float(a.mean() / b.mean()), statistics.ratio_interval(a, b)
    return {
        "measured": measured,
        "ci_low": low,
        "ci_high": high,
        "n_pairs": len(a),
        "p_value": statistics.paired_permutation_p(contrast, generator),
        "contrast": contrast,
        "log": log,
        "at_least": claim.at_least is not None,
        "reason": claim.out_of_reach(b),
    }


def _verdict(row: dict[str, Any], contrast: statistics.Floats, family: int) -> dict[str, Any]:
    """The verdict, and the number of seeds needed."""
    n = len(contrast)
    side = float(contrast.mean()) if n else math.nan
    outcome = statistics.verdict(row["p_holm"], family * statistics.smallest_attainable_p(n), side)
    above, below = ("supported", "contradicted") if row.pop("at_least") else ("contradicted", "supported")
    answer: dict[str, Any] = {"verdict": {"a higher": above, "b higher": below}.get(outcome, outcome)}
    if row["reason"] and answer["verdict"] != "supported":
        answer["verdict"] = OUT_OF_REACH
    log = row.pop("log")
    if n < 2:
        return answer
    spread = float(contrast.std(ddof=1))
    effect = abs(side) / spread if spread else math.inf if side else 0.0
    answer["effect_size"] = statistics.effect_size(contrast)
    answer["power"] = power.power_of(n, effect, statistics.ALPHA / family)
    distance = power.detectable_at(n, family) * spread if spread else 0.0
    answer["detectable"] = _exp(distance) if log else distance
    if answer["verdict"] in ("underpowered", "not distinguishable"):
        answer["seeds_needed"] = power.seeds_for(effect, family)
    return answer


def _exp(value: float) -> float:
    """The exponential, infinite where it is too large to be a number."""
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf
