"""Tuning with equal effort: every estimator has the same number of trials, at the same learning rates, on seeds that no
comparison uses."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import scipy.stats

from gradebench.analysis import cell_labels, rate_curve, tables
from gradebench.core import options, schema
from gradebench.core.errors import InputError
from gradebench.core.task import Task
from gradebench.experiment import runner
from gradebench.experiment.plan import Cell, Plan
from gradebench.plugins import registry
from gradebench.storage import digests, files, records
from gradebench.storage.tuned import CURVES, CURVES_COLUMNS

EXTENSIONS = 2  # further rates that an estimator may try if its best rate is at an end of the range


@dataclass
class Tuned:
    """The results of a tuning: its curves, with CURVES_COLUMNS, and the choices that `run --tuned` reads."""

    curves: pd.DataFrame
    choices: dict[str, Any]
    run: runner.Run
    outcome: runner.Outcome


@dataclass(frozen=True)
class Varied:
    """An option of an estimator that is tuned together with the learning rate: a range, or a list of choices."""

    name: str
    low: float | int = 0
    high: float | int = 0
    choices: tuple[str, ...] = ()

    def at(self, share: float) -> str:
        """The value at a share, 0 to 1, of its range; on a log scale if both ends are positive."""
        if self.choices:
            return self.choices[int(share * len(self.choices))]
        whole = isinstance(self.low, int)
        low, high = (self.low - 0.5, self.high + 0.5) if whole else (self.low, self.high)
        value = low * (high / low) ** share if low > 0 else low + (high - low) * share
        return str(min(max(round(value), self.low), self.high)) if whole else f"{value:.3g}"


def parse_varied(text: str) -> tuple[str, list[Varied]]:
    """ "gumbel-rao:tau=0.1..2,k=2..64" or "ppo:whiten=true|false": the estimator's label, and its options that vary.

    Raises        InputError for another form, and for values that the options don't take.
    """
    spec = options.parse_spec(text)
    if not spec.options:
        raise InputError(f"--vary {text}: it names no option; write NAME:option=LOW..HIGH or NAME:option=a|b|c")
    varied = []
    for name, value in spec.options.items():
        given = value.split("..") if ".." in value else value.split("|")
        found = [registry.resolve("estimators", f"{spec.target}:{name}={one}").params[name] for one in given]
        if len(set(found)) < max(2, len(found)):
            raise InputError(f"--vary {text}: {name}={value} has nothing to choose from")
        if "|" in value or ".." not in value:
            varied.append(Varied(name, choices=tuple(given)))
            continue
        low, high = (found[0], found[-1])
        numbers = all(isinstance(end, int | float) and not isinstance(end, bool) for end in found)
        if len(found) != 2 or not numbers or low >= high:
            raise InputError(f"--vary {text}: {name}={value} is no LOW..HIGH of numbers")
        varied.append(Varied(name, low, high))
    return registry.resolve("estimators", spec.target).label, varied


def quasi_random(trials: int, dimensions: int) -> np.ndarray:
    """Points (trials, dimensions) that fill the unit cube evenly, and so does every first part of them.

    A column doesn't depend on the number of columns, so learning rates, the first, are the same whatever else varies.

    Source        Halton 1960, without its first point, the origin.
    """
    return np.asarray(scipy.stats.qmc.Halton(dimensions, scramble=False).random(trials + 1)[1:])


def quasi_random_rates(low: float, high: float, trials: int) -> list[float]:
    """Learning rates between low and high, spread evenly on a log scale."""
    return [float(f"{low * (high / low) ** share:.3g}") for share in quasi_random(trials, 1)[:, 0]]


def tune(
    request: runner.Request,
    rates_for: Callable[[Task], Sequence[float]],
    progress: runner.Progress,
    vary: Mapping[str, Sequence[Varied]] | None = None,
    extensions: int = EXTENSIONS,
) -> Tuned:
    """Train every estimator at the same rates and seeds, and choose the rate at which a smooth fit of the objective is
    highest (`rate_curve.choose`), for the last step and for each earlier one that was evaluated.

    If the chosen rate is at an end of the range, and no rate beyond it failed, the range is extended there by the same
    factor, at most `extensions` times. The objective is the task's own, reward - beta KL on validation prompts.

    `vary` gives options, by estimator, that are tuned too: the number of trials stays the same, each at its rate and at a
    quasi-random point of the options, and the best trial is chosen, because there is no curve to fit. Finished cells of
    an earlier tuning in the folder are kept, and an interrupted tuning writes what is finished.

    Raises        InputError if `vary` has an estimator that isn't tuned.
    """
    vary = vary or {}
    run = runner.prepare(request, progress)
    if unknown := set(vary) - {cell.estimator for _, cell in run.cells}:
        raise InputError(f"--vary {min(unknown)}: it isn't among the estimators that are tuned")
    rates = {label: list(rates_for(task)) for label, task in run.tasks.items()}
    for label, task in run.tasks.items():
        tried = ", ".join(f"{rate:g}" for rate in sorted(rates[label]))
        progress.note(f"{label} [{task.setting}]: learning rates {tried} for every estimator, on seeds {request.seeds}")
    asked = _Asked.of(run)
    run.cells = asked.cells_at(lambda cell: rates[cell.task], vary)
    with files.exclusive_lock(run.out):
        outcome = runner.measure(request, run, progress)
        outcome, extended = _extended(request, run, asked, outcome, vary, extensions, progress)
    rows = asked.trials_in(outcome.metrics)
    beyond_ends = {rate for rate in extended if not any(rate in asked_for for asked_for in rates.values())}
    rates = {label: sorted(set(rows.loc[rows["task"] == label, "learning_rate"]) - beyond_ends) for label in rates}
    curves, choices = curves_of(rows), _choices(run, asked, rates, rows, extensions)
    tables.write_csv(rows, run.out / "trials.csv")
    tables.write_csv(curves, run.out / CURVES)
    records.write_json(run.out / "tuned.json", choices)
    digests.seal(run.out, records.READ_AGAIN)
    return Tuned(curves, choices, run, outcome)


@dataclass(frozen=True)
class _Asked:
    """What is to be tuned: the cells, each at several rates, and the settings of their tasks."""

    cells: list[tuple[Plan, Cell]]
    steps: dict[str, int]  # by task
    budgets: dict[str, list[int]]
    betas: dict[str, float]

    @classmethod
    def of(cls, run: runner.Run) -> "_Asked":
        cells = [(replace(plan, checkpoints=0), cell) for plan, cell in run.cells]
        steps = {cell.task: plan.steps for plan, cell in cells}
        budgets = {cell.task: [step for step in plan.evaluation_steps if step] for plan, cell in cells}
        return cls(cells, steps, budgets, {label: task.beta for label, task in run.tasks.items()})

    def cells_at(
        self, rates: Callable[[Cell], Sequence[float]], vary: Mapping[str, Sequence[Varied]]
    ) -> list[tuple[Plan, Cell]]:
        return [
            (replace(plan, learning_rate=rate), trial)
            for plan, cell in self.cells
            for rate, trial in _trials(cell, rates(cell), vary.get(cell.estimator, ()))
        ]

    def trials_in(self, metrics: pd.DataFrame) -> pd.DataFrame:
        """The trials of this command's tasks, with those of earlier commands in the folder."""
        return trials_of(metrics[metrics["task"].isin(list(self.steps))], self.budgets, self.betas)


def _extended(
    request: runner.Request,
    run: runner.Run,
    asked: _Asked,
    outcome: runner.Outcome,
    vary: Mapping[str, Sequence[Varied]],
    extensions: int,
    progress: runner.Progress,
) -> tuple[runner.Outcome, set[float]]:
    """The outcome with further trials for estimators whose best rate was at an end, and the rates of these trials."""
    extended: set[float] = set()
    for _ in range(extensions):
        if outcome.interrupted:
            break
        rows = asked.trials_in(outcome.metrics)
        more = {place: [rate] for place, rate in beyond(rows, asked.steps).items() if place[1] not in vary}
        if not more:
            break
        extended |= {rate for (rate,) in more.values()}
        run.cells += asked.cells_at(lambda cell: more.get((cell.task, cell.estimator), []), {})  # noqa: B023 - it is called at once
        progress.note(
            "best at an end: " + ", ".join(f"{name} also tries {rate:g}" for (_, name), (rate,) in more.items())
        )
        again = runner.measure(replace(request, resume=True), run, progress)
        outcome = replace(again, reused=outcome.reused)
    return outcome, extended


def _choices(
    run: runner.Run, asked: _Asked, rates: Mapping[str, Sequence[float]], rows: pd.DataFrame, extensions: int
) -> dict[str, Any]:
    """The content of tuned.json."""
    return {
        "protocol": {
            "criterion": "reward - beta * KL on validation prompts at the last step, mean over seeds",
            "choice": "the maximum of a local quadratic along the logarithm of the rate",
            "extensions": extensions,
            "seeds": sorted(map(int, rows["seed"].unique())),
        },
        "tasks": {
            label: {
                "setting": task.setting,
                "steps": asked.steps[label],
                "beta": asked.betas[label],
                "rates": sorted(rates[label]),
                "estimators": chosen(rows[rows["task"] == label], asked.steps[label]),
                "budgets": {
                    str(budget): chosen(rows[rows["task"] == label], budget, final=False)
                    for budget in asked.budgets[label]
                },
            }
            for label, task in run.tasks.items()
        },
    }


def _trials(cell: Cell, rates: Sequence[float], varied: Sequence[Varied]) -> list[tuple[float, Cell]]:
    """The trials of a cell: one at each rate, with a point of the options that vary."""
    if not varied:
        return [(rate, _trial(cell, rate)) for rate in rates]
    found = []
    for rate, (_, *shares) in zip(rates, quasi_random(len(rates), 1 + len(varied)), strict=True):
        values = {one.name: one.at(float(share)) for one, share in zip(varied, shares, strict=True)}
        resolved = registry.resolve("estimators", options.with_values(cell.estimator_spec, values))
        said = ",".join(f"{name}={value}" for name, value in values.items())
        made = replace(cell, estimator_spec=resolved.spec, params=json.dumps(resolved.params, sort_keys=True))
        found.append((rate, _trial(made, rate, said)))
    return found


def _trial(cell: Cell, rate: float, said: str = "") -> Cell:
    label = cell_labels.trial_label(cell.estimator, rate, said)
    return replace(cell, estimator=label, trial_of=cell.estimator, trial_options=said)


def trials_of(metrics: pd.DataFrame, budgets: Mapping[str, Sequence[int]], betas: Mapping[str, float]) -> pd.DataFrame:
    """One row for each trial and budget (number of steps): the cell's status, and validation reward, KL and objective there."""
    metrics = cell_labels.with_trial_rates(cell_labels.with_columns(metrics))
    which = ["status", "trial_of", "learning_rate", "trial_options"]
    cells = metrics.groupby(["task", "setting", "estimator", "seed"], sort=False)[which].first().reset_index()
    cells["step"] = cells["task"].map(budgets)
    cells = cells.explode("step", ignore_index=True).astype({"step": int})
    index = ["task", "setting", "estimator", "seed", "step"]
    found = metrics[(metrics["split"] == "validation") & metrics["metric"].isin(["reward", "kl"])]
    wide = found.pivot_table(index=index, columns="metric", values="value").reindex(columns=["reward", "kl"])
    rows = cells.join(wide, on=index)
    rows["objective"] = rows["reward"] - rows["task"].map(betas) * rows["kl"].fillna(0.0)
    rows = rows.assign(estimator=rows["trial_of"], options=rows["trial_options"])
    names = schema.TRIALS.names
    return rows[names].sort_values(names[: names.index("status")], ignore_index=True)


def whole_trials(trials: pd.DataFrame) -> pd.DataFrame:
    """Objectives (seed x (learning_rate, options)) of one estimator at one budget, of the trials that are ok in all seeds.

    A trial that failed or diverged in any seed, at any step, can't be chosen, and bounds the range of rates.
    """
    trial = ["learning_rate", "options"]
    wide = trials.set_index(["seed", *trial])["objective"].unstack(trial).sort_index(axis=1)
    ok = (trials["status"] == "ok").groupby([trials["learning_rate"], trials["options"]]).all()
    return wide[[one for one in wide.columns if ok[one] and wide[one].notna().all()]]


def _places(whole: pd.DataFrame) -> list[tuple[float, str]]:
    """The rate and the options of each trial."""
    levels = (whole.columns.get_level_values(level).tolist() for level in (0, 1))
    return [(float(rate), str(said)) for rate, said in zip(*levels, strict=True)]


def _best(trials: pd.DataFrame) -> tuple[pd.DataFrame, rate_curve.Choice, str] | None:
    """For one estimator at one budget: its complete trials, the chosen one, and its options; None if there is none.

    If options vary too, the best trial is chosen without a fit.
    """
    whole = whole_trials(trials)
    if whole.empty or not len(whole.columns):
        return None
    rates = [rate for rate, _ in _places(whole)]
    if len(set(rates)) == len(rates) and not any(options for _, options in _places(whole)):
        return whole, rate_curve.choose(rates, whole.to_numpy()), ""
    rate, said = _places(whole)[int(whole.mean().to_numpy().argmax())]
    alone = rate_curve.choose([rate], whole[[(rate, said)]].to_numpy())
    end = {min(rates): "low", max(rates): "high"}.get(rate, "") if len(rates) > 1 else ""
    return whole, replace(alone, rate=rate, end=end), said


def beyond(trials: pd.DataFrame, steps: Mapping[str, int]) -> dict[tuple[str, str], float]:
    """The next rate to try, by task and estimator, where the best one at the last step is at an end of the range."""
    last = trials[trials["step"] == trials["task"].map(steps)]
    more = {}
    for (task, estimator), mine in last.groupby(["task", "estimator"]):
        tried = sorted(mine["learning_rate"].unique())
        found = _best(mine)
        if found is None or len(tried) < 3 or mine["options"].any():
            continue
        good = [rate for rate, _ in _places(found[0])]
        end = found[1].end
        if (end == "high" and max(good) == tried[-1]) or (end == "low" and min(good) == tried[0]):
            more[str(task), str(estimator)] = rate_curve.extended(tried, end)
    return more


def curves_of(rows: pd.DataFrame) -> pd.DataFrame:
    """The mean objective by trial and budget, with CURVES_COLUMNS, and the fit; NaN if a seed of the trial failed.

    `chosen` marks the trial nearest to the chosen rate, `tied` those whose rates aren't significantly worse.
    Skipped estimators have no curve.
    """
    points: list[tuple[Any, ...]] = []
    ran = rows[rows["status"] != "skipped"]
    for (task, setting, estimator, steps), mine in ran.groupby(["task", "setting", "estimator", "step"], sort=True):
        found = _best(mine)
        whole = found[0] if found else pd.DataFrame()
        fitted = _fitted(*found) if found else {}
        for trial, seeds in mine.groupby(["learning_rate", "options"], sort=True):
            rate, said = float(seeds["learning_rate"].iloc[0]), str(seeds["options"].iloc[0])
            statuses = "+".join(sorted(set(seeds["status"]) - {"ok"})) or "ok"
            here = whole[trial] if trial in whole.columns else pd.Series(dtype=float)
            place = (task, setting, estimator, rate, said)
            facts = (here.mean(), here.sem(), len(seeds), statuses)
            is_chosen, *curve = fitted.get((rate, said), (False, math.nan, math.nan, False))
            points.append((*place, *facts, is_chosen, steps, *curve))
    return pd.DataFrame(points, columns=CURVES_COLUMNS)


def _fitted(whole: pd.DataFrame, best: rate_curve.Choice, said: str) -> dict[tuple[float, str], tuple[Any, ...]]:
    """For each trial: whether it is chosen, the fit, its standard error, and whether it is tied with the best."""
    trials = _places(whole)
    rates = np.array([rate for rate, _ in trials])
    varied = any(options for _, options in trials)
    nearest = trials.index((best.rate, said)) if varied else int(np.argmin(np.abs(np.log(rates / best.rate))))
    curve = whole.to_numpy() if varied else rate_curve.fit(rates, whole.to_numpy(), rates)
    error = scipy.stats.sem(curve, axis=0) if len(curve) > 1 else np.full(len(rates), math.nan)
    return {
        trial: (i == nearest, curve[:, i].mean(), error[i], i == nearest or best.rate_low <= rates[i] <= best.rate_high)
        for i, trial in enumerate(trials)
    }


def chosen(rows: pd.DataFrame, steps: int, final: bool = True) -> dict[str, dict[str, Any]]:
    """For each estimator of one task at one budget: the chosen rate with its fitted objective, the range of rates that
    aren't significantly worse, and whether the rate is at an end; at the `final` budget also the options."""
    answer = {}
    at = rows[(rows["step"] == steps) & (rows["status"] != "skipped")]
    for estimator, mine in at.groupby("estimator"):
        if (found := _best(mine)) is None:
            continue
        whole, best, said = found
        if not final and said:
            continue  # with varied options, those of the last step are used at all budgets
        answer[str(estimator)] = {
            "learning_rate": best.rate,
            "objective": best.objective,
            **{
                name: None if math.isnan(value) else value  # JSON has no NaN
                for name, value in vars(best).items()
                if name in ("standard_error", "rate_low", "rate_high")
            },
            "at_the_end": bool(best.end),
            "rates": sorted({rate for rate, _ in _places(whole)}),
        }
        if final:
            answer[str(estimator)]["options"] = dict(item.split("=", 1) for item in said.split(",") if item)
    return answer
