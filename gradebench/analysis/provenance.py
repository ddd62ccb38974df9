"""Where each estimator's learning rate comes from, and which estimators may therefore be compared."""

import math
import shlex
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import pandas as pd

from gradebench.core.schema import RATE_COLUMNS

TUNED, TASK, GIVEN, LIKE = "tuned", "task", "given", "like "
OTHER_SETTING = "tuned in another setting"
NOT_COMPARABLE = "not comparable"  # begins the verdict of a pair whose rates make it incomparable


@dataclass(frozen=True)
class Rate:
    """A learning rate and where it comes from.

    kind      "tuned": by trials of this estimator, with these options, in this setting, at as many steps as are run;
              "tuned for N steps", "tuned in another setting": by trials of something else;
              "like NAME": tuned for the estimator NAME; "task": the task's own; "given": by --learning-rate
    detail    the trials, such as "6 rates x 5 seeds at 320 steps"
    origin    the file with the trials; not part of the source, since it doesn't affect the effort
    """

    value: float
    kind: str
    detail: str = ""
    origin: str = ""

    @property
    def source(self) -> str:
        """Kind and detail, for the column `rate_source`."""
        return f"{self.kind}: {self.detail}" if self.detail else self.kind

    def borrowed(self, name: str) -> "Rate":
        """The rate, tuned for `name`, as used by another estimator. A rate that wasn't tuned is returned unchanged."""
        return replace(self, kind=f"{LIKE}{name}", detail=self.source) if self.kind.startswith(TUNED) else self


def tuned_rate(recorded: Mapping[str, Any], steps: int, setting: str, origin: str = "") -> Rate:
    """The rate of an estimator's record for a run of `steps` steps: that of the nearest budget by its logarithm.

    `recorded` holds learning_rate and, where they are known, the `steps` that it is for, `trials` in words, the
    `setting`, and `budgets`, rates by number of steps.
    """
    budgets = {int(budget): float(rate) for budget, rate in recorded.get("budgets", {}).items()}
    if "steps" in recorded:
        budgets.setdefault(int(recorded["steps"]), float(recorded["learning_rate"]))
    trials = str(recorded.get("trials", ""))
    nearest = min(budgets, key=lambda budget: (abs(math.log(budget / steps)), -budget), default=steps)
    rate, known = budgets.get(nearest, float(recorded["learning_rate"])), bool(budgets and trials)
    if recorded.get("setting", setting) != setting:
        kind = OTHER_SETTING
    else:
        kind = TUNED if nearest == steps else f"tuned for {nearest} steps"
    return Rate(rate, kind, f"{trials} at {nearest} steps" if known else trials, origin)


# --- who may be compared with whom ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ran:
    """An estimator of a table of metrics with the rate that it ran at."""

    estimator: str
    rate: float
    source: str

    @property
    def kind(self) -> str:
        return self.source.partition(": ")[0]

    @property
    def words(self) -> str:
        """The kind in a verdict."""
        return {TASK: "untuned", "": "unknown"}.get(self.kind, self.kind)


def ran(rows: pd.DataFrame) -> dict[str, Ran]:
    """Each estimator of one task and setting with its rate; the source is empty for older metrics, which lack it."""
    if not set(RATE_COLUMNS) <= set(rows.columns):
        return {str(name): Ran(str(name), math.nan, "") for name in rows["estimator"].unique()}
    distinct: dict[str, set[tuple[str, float]]] = {}
    columns = (rows[name].tolist() for name in ("estimator", "rate_source", "learning_rate"))
    for name, source, rate in zip(*columns, strict=True):
        distinct.setdefault(name, set()).add((source if isinstance(source, str) else "", float(rate)))
    answer = {}
    for name, mine in sorted(distinct.items()):
        sources = sorted({source for source, _ in mine})
        rates = [rate for _, rate in mine]
        source = sources[0] if len(sources) == 1 else f"several: {'; '.join(sources)}"
        answer[str(name)] = Ran(str(name), rates[0] if len(set(rates)) == 1 else math.nan, source)
    return answer


def comparable(a: Ran, b: Ran) -> bool:
    """Whether neither was favoured by its rate: both were tuned with the same effort, or both ran at the same rate that
    wasn't tuned for one of them alone, or one borrowed the other's."""
    if _borrows(a, b) or _borrows(b, a):
        return True
    return a.source == b.source and (a.kind.startswith(TUNED) or _same(a.rate, b.rate))


def _borrows(a: Ran, b: Ran) -> bool:
    return a.kind == f"{LIKE}{b.estimator}" and _same(a.rate, b.rate)


def _same(one: float, other: float) -> bool:
    return one == other or (math.isnan(one) and math.isnan(other))


def verdict(a: Ran, b: Ran) -> str:
    """The verdict on two estimators that aren't comparable."""
    if a.words == b.words:
        return f"{NOT_COMPARABLE}: {a.words} at {a.rate:g} against {b.rate:g}, or otherwise"
    return f"{NOT_COMPARABLE}: {a.words} against {b.words}"


def together(estimators: Iterable[Ran]) -> list[str]:
    """The largest set of mutually comparable estimators, in the order given; if several are as large, the tuned one."""
    ordered = list(estimators)
    best: list[Ran] = []
    for first in ordered:
        chosen = [first]
        for other in sorted(ordered, key=lambda one: one.source != first.source):
            if other not in chosen and all(comparable(other, one) for one in chosen):
                chosen.append(other)
        if (len(chosen), first.kind == TUNED) > (len(best), bool(best) and best[0].kind == TUNED):
            best = chosen
    return [one.estimator for one in ordered if one in best]


def incomparable(metrics: pd.DataFrame) -> dict[frozenset[str], str]:
    """The pairs of estimators whose rates make them incomparable in some task and setting of these rows, with their
    verdicts."""
    found: dict[frozenset[str], str] = {}
    for _, rows in metrics.groupby(["task", "setting"], sort=True):
        for pair, why in incomparable_of(ran(rows).values()).items():
            found.setdefault(pair, why)
    return found


def incomparable_of(estimators: Iterable[Ran]) -> dict[frozenset[str], str]:
    """The pairs of these estimators of one task and setting, with their verdicts."""
    pairs = combinations(estimators, 2)
    return {frozenset((a.estimator, b.estimator)): verdict(a, b) for a, b in pairs if not comparable(a, b)}


def unless_unfair(row: dict[str, Any], unfair: Mapping[frozenset[str], str]) -> dict[str, Any]:
    """The row of a comparison; if the pair is incomparable, without p, interval and effect, and with the reason."""
    why = unfair.get(frozenset((row["estimator_a"], row["estimator_b"])))
    if why is None:
        return row
    return (
        row
        | {name: math.nan for name in ("p_value", "ci_low", "ci_high", "effect_size") if name in row}
        | {"verdict": why}
    )


def compared(metrics: pd.DataFrame, estimators: Iterable[str]) -> list[str]:
    """The estimators that are mutually comparable in every task and setting of these rows, in the order given."""
    kept = list(estimators)
    for _, rows in metrics.groupby(["task", "setting"], sort=True):
        rates = ran(rows)
        kept = together(rates[name] for name in kept if name in rates)
    return kept


# --- in words ---------------------------------------------------------------------------------------------------

_SAID = {
    TUNED: "rates tuned for each",
    TASK: "the task's own rate",
    GIVEN: "a rate that was given",
    OTHER_SETTING: "rates tuned in another setting",
    "": "rates that an older version didn't record",
}


def _said(kind: str) -> str:
    if kind.startswith(LIKE):
        return f"the rate of {kind.removeprefix(LIKE)}"
    return _SAID.get(kind, f"rates {kind}")


def notices(metrics: pd.DataFrame, estimators: Collection[str] | None = None) -> list[str]:
    """A sentence for each task and setting in which rates make estimators incomparable, or were tuned for another one.

    Each has the command that fixes it. With `estimators`, only those count.
    """
    said: list[str] = []
    if metrics.empty or "task" not in metrics.columns:
        return said
    for (task, _), rows in metrics.groupby(["task", "setting"], sort=True):
        # A value without a test reward ranks nobody.
        tested = rows[(rows["phase"] == "evaluation") & (rows["status"] == "ok") & rows["step"].notna()]
        if estimators is not None:
            tested = tested[tested["estimator"].isin(list(estimators))]
        if tested.empty:
            continue
        found, steps = list(ran(tested).values()), int(tested["step"].max())
        main = set(together(found))
        said += _apart(str(task), steps, [one for one in found if one.estimator in main], found)
        said += _off(str(task), steps, [one for one in found if one.estimator in main])
    return said


def _apart(task: str, steps: int, main: Sequence[Ran], found: Sequence[Ran]) -> list[str]:
    """One sentence for each kind of rate that makes estimators incomparable with most others."""
    others: dict[str, list[str]] = {}
    names = {one.estimator for one in main}
    for one in found:
        if one.estimator not in names:
            others.setdefault(one.kind, []).append(one.estimator)
    majority = _said(main[0].kind)
    said = []
    for kind, mine in others.items():
        rest = f"another of {majority}" if _said(kind) == majority else majority
        lender = kind.removeprefix(LIKE)
        but = f" except with {lender}" if kind.startswith(LIKE) and lender in {one.estimator for one in found} else ""
        said.append(
            f"{task}: {_listed(mine)} ran at {_said(kind)}, the others at {rest}, so there is no tier and no p between "
            f"them{but}; {_command(task, steps, [one.estimator for one in found])} tunes all of them in the same way"
        )
    return said


def _off(task: str, steps: int, main: Sequence[Ran]) -> list[str]:
    """A sentence if all rates were tuned for another setting: a fair comparison, but not at tuned rates."""
    kind = main[0].kind
    if not kind.startswith(TUNED) or kind == TUNED:
        return []
    command = _command(task, steps, [one.estimator for one in main])
    return [f"{task}: {_said(kind)}, and these ran {steps}: the same for all, but not the best; {command} tunes for it"]


def _command(task: str, steps: int, names: Sequence[str]) -> str:
    words = [word for name in names for word in ("-e", without_loan(name))]
    return f"`{shlex.join(['gradebench', 'run', '--tune', *words, '-t', task, '--steps', str(steps)])}`"


def without_loan(label: str) -> str:
    """The label of an estimator without its `rate-like`, so that it is tuned."""
    target, colon, options = label.rpartition(":")
    kept = [option for option in options.split(",") if not option.startswith("rate-like=")]
    if not colon or len(kept) == len(options.split(",")):
        return label
    return f"{target}:{','.join(kept)}" if kept else target


def _listed(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else names[0]
