"""Published and closed-form values against what the package measures.

    python benchmarks/anchors.py toy           seconds
    python benchmarks/anchors.py polynomial    ten minutes on two cores; --estimators st reinmax: other rows stay

`toy`: gradient and ln variance of E (b - t)^2 at theta = 1/2, by listing all draws and by the probe engine, with the
Monte-Carlo error. `polynomial`: final losses of ReinMax's polynomial programming (Liu et al. 2023, table 1 and figure
2: 128 bits, t = .45, batch 64, 8000 Adam steps at 1e-3) against the published ones. Writes results/anchors/*.csv.
"""

import argparse
import functools
import itertools
import math
import tempfile
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch

from gradebench.core.sampling import generator
from gradebench.experiment import runner
from gradebench.measurement.gradient_metrics import gradient_metrics, summaries
from gradebench.measurement.moments import Reference, flatten
from gradebench.measurement.probes import Source, moments_of
from gradebench.plugins import registry

OUT = Path("results/anchors")
PAIRS = 20_000
TOLERANCE = 0.003  # of a final loss
PUBLISHED = {  # final losses by p
    "st": {"1.5": 0.3522, "2": 0.2475, "3": 0.1213},
    "grade-ste": {"1.5": 0.3513, "2": 0.2458, "3": 0.1188},  # there: STGS
    "reinforce:baseline=none": {"1.5": 0.351, "2": 0.2475, "3": 0.123},
    "reinmax": {"1.5": 0.3054, "2": 0.2037, "3": 0.0915},
    "gapped-st": {"1.5": 0.3522, "2": 0.2475, "3": 0.1213},  # there: GST-1.0, a gap of 1
    "gumbel-rao": {"1.5": 0.3513, "2": 0.2458, "3": 0.1188},  # there: GR-MC10
}


def toy() -> pd.DataFrame:
    rows = []
    for t, spec in itertools.product((0.45, 0.499), ("reinforce:baseline=none", "rloo:n=2", "rloo:n=4")):
        task = registry.resolve("tasks", f"bernoulli-toy:t={t}").create()
        task.prepare(torch.device("cpu"), print)
        task.load(torch.device("cpu"))
        estimator = registry.resolve("estimators", spec).create().eval()
        source = Source(
            contexts=lambda number: torch.tensor([0]),
            problem=functools.partial(task.problem, "train"),
            generator=functools.partial(generator, "cpu", "anchors", spec, t),
        )
        exact = flatten(task.problem("train", torch.tensor([0])).exact_gradient())
        moments = moments_of(estimator, source, PAIRS, exact, [1])
        found = gradient_metrics(summaries(moments, Reference.known(exact, [1]), ["logit"])[""])
        variance = found["gradient_variance"]
        mean, closed_form = listed(t, estimator.n)
        rows.append(
            {
                "t": t,
                "estimator": spec,
                "exact_gradient": float(exact),
                "mean_of_all_draws": mean,
                "measured_mean": float(moments.mean),
                "ln_variance_closed_form": math.log(closed_form),
                "ln_variance_measured": math.log(variance.value),
                "ln_variance_ci_low": math.log(variance.low),
                "ln_variance_ci_high": math.log(variance.high),
                "draws": 2 * PAIRS,
            }
        )
    return pd.DataFrame(rows)


def listed(t: float, n: int) -> tuple[float, float]:
    """Mean and variance of the estimate over all outcomes of n bits, each 0 or 1 with probability 1/2."""
    estimates = []
    for bits in itertools.product((0, 1), repeat=n):
        rewards = [(b - t) ** 2 for b in bits]
        baselines = [(sum(rewards) - r) / (n - 1) if n > 1 else 0.0 for r in rewards]
        estimates.append(sum((r - c) * (b - 0.5) for b, r, c in zip(bits, rewards, baselines, strict=True)) / n)
    mean = sum(estimates) / len(estimates)
    return mean, sum((e - mean) ** 2 for e in estimates) / len(estimates)


def polynomial(estimators: list[str], seeds: str) -> pd.DataFrame:
    tasks = [f"polynomial:p={p}" for p in ("1.5", "2", "3")]
    with tempfile.TemporaryDirectory() as folder:
        request = runner.Request(estimators, tasks, seeds, out=folder)
        run = runner.prepare(request, runner.Progress())
        run.cells = [(replace(plan, evaluations=1, checkpoints=0), cell) for plan, cell in run.cells]
        metrics = runner.execute(request, run, runner.Progress()).metrics
    last = metrics[(metrics["metric"] == "reward") & (metrics["split"] == "test") & (metrics["step"] > 0)]
    rows = []
    for key, values in last.groupby(["task", "estimator"])["value"]:
        task, estimator = map(str, key)
        p = task.partition("p=")[2] or "2"
        published, loss = PUBLISHED[estimator][p], -values.mean()
        gap = loss - published
        rows.append(
            {
                "p": p,
                "estimator": estimator,
                "published_loss": published,
                "loss": loss,
                "least": -values.max(),
                "most": -values.min(),
                "seeds": len(values),
                "gap": gap,
                "within_0.003": abs(gap) <= TOLERANCE,
            }
        )
    return pd.DataFrame(rows)


def kept(path: Path, fresh: pd.DataFrame) -> pd.DataFrame:
    """The fresh rows among those of the file at `path` that they don't replace."""
    if path.exists():
        fresh = pd.concat([fresh, pd.read_csv(path, dtype={"p": str})])
    return fresh.drop_duplicates(["p", "estimator"]).sort_values(["p", "estimator"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["toy", "polynomial"])
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--estimators", nargs="+", choices=PUBLISHED, default=list(PUBLISHED), help="of `polynomial`")
    arguments = parser.parse_args()
    path = OUT / f"{arguments.what}.csv"
    table = toy() if arguments.what == "toy" else kept(path, polynomial(arguments.estimators, arguments.seeds))
    path.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(path, index=False, float_format="%.6g")
    print(table.to_string(index=False))


if __name__ == "__main__":
    main()
