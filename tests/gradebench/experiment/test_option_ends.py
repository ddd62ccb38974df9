"""Every option of everything that is registered, at the ends of its declared range: a result, or one clear line.

Left out by one rule, `ends`: an integer is run at its lower bound alone, since a large one takes nothing but memory and
time; and defaults, at which everything else runs.
"""

import dataclasses
import functools
import math

import numpy as np
import pytest
import torch

from gradebench import InputError
from gradebench.experiment import harness
from gradebench.experiment.plan import Cell, Plan
from gradebench.plugins import registry
from gradebench.tasks import arithmetic, imdb
from gradebench.tasks.grammar import generate_reviews
from gradebench.tasks.judge import BagOfWordsJudge

LARGE = 1e30  # of floats without a bound
CHEAPEST = "enumerable-lm:vocabulary={},horizon=2,layers=1,width=4"
# What an option's end is combined with, so that the rest is cheap and fits it.
BESIDE = {
    "enumerable-lm": {"vocabulary": 2, "horizon": 1, "layers": 1, "width": 2},
    "digits-vae": {"latents": 1, "categories": 2, "width": 1},
    "polynomial": {"latents": 1},
    "arithmetic": {"digits": 1},
    "imdb": {"corpus": "embedded", "size": "mini"},
}


def ends(option):
    """The values at the ends of an option's range, all choices, both truths; nothing of free text."""
    none = [None] if option.optional else []
    if option.choices or option.base is bool:
        return [*(option.choices or (False, True)), *none]
    if option.base is str:
        return []
    low, high = (getattr(option.range, end, None) for end in ("low", "high"))
    if option.base is int:
        return [*([] if low is None else [low]), *none]
    found = [-LARGE, 0.0] if low is None else [low]
    if low is not None and option.range.low_open:
        found = [float(np.nextafter(low, math.inf))]
    if high is None:
        return [*found, LARGE, *none]
    return [*found, float(np.nextafter(high, low)) if option.range.high_open else high, *none]


def cases(kind):
    for name, entry in registry.entries(kind).items():
        if entry.builtin:
            for option in (entry.options or {}).values():
                yield from ((name, option.name, end) for end in ends(option) if end != option.default)


def text_of(value):
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def ended(task_spec, estimator, out):
    """Status and reason of two steps; for what is refused, "refused" and the line."""
    resolved = registry.resolve("tasks", task_spec)
    try:
        task = resolved.create()
        task.prepare(torch.device("cpu"), lambda message: None)
        plan = Plan("run", str(out), "cpu", 2, 16, 0.01, evaluations=1, checkpoints=0, setting=task.setting, prepared=task.prepared)  # fmt: skip
        spec = registry.resolve("estimators", estimator)
        spec.create()  # as a command does before the first cell: options may not go together
        return harness.run_cell(
            plan, Cell(resolved.label, resolved.spec, task.options, spec.label, spec.spec, 0), "key"
        )
    except InputError as refusal:
        return "refused", str(refusal)


def require_clear(status, reason):
    assert status in ("ok", "diverged", "refused"), reason
    assert "\n" not in reason and (status == "ok") == (not reason)


@pytest.mark.parametrize("name", sorted({name for name, *_ in cases("estimators")}))
def test_an_estimator_runs_at_the_ends_of_its_options(name, tmp_path):
    binary = "binary" in registry.load("estimators", name).factory.needs
    for _, option, end in (case for case in cases("estimators") if case[0] == name):
        status, reason = ended(CHEAPEST.format(2 if binary else 3), f"{name}:{option}={text_of(end)}", tmp_path)
        require_clear(status, f"{reason}")


@pytest.fixture(scope="module")
def made_quickly(tmp_path_factory):
    """What tasks train before a comparison, in next to no steps, and nothing from a hub."""
    with pytest.MonkeyPatch.context() as patch:
        quick = dataclasses.replace(arithmetic.Pretraining(), width=8, layers=1, heads=2, steps=2, batch=4)
        patch.setattr(arithmetic, "Pretraining", lambda: quick)
        tiny = imdb.Size(8, 1, 2, 300, 4, 3, 32, 2, 2, 2)
        patch.setattr(imdb, "SIZES", dict.fromkeys(imdb.SIZES, tiny))
        small = functools.cache(lambda seed: generate_reviews(1000, seed))
        patch.setattr("gradebench.tasks.grammar.generate_reviews", lambda count, seed: small(seed))
        patch.setattr(imdb, "train_judge", lambda texts, labels: BagOfWordsJudge(np.zeros(2**18), 0.0))
        patch.setenv("GRADEBENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        yield patch


@pytest.mark.parametrize("name", sorted({name for name, *_ in cases("tasks")}))
def test_a_task_runs_at_the_ends_of_its_options(name, tmp_path, tmp_path_factory, made_quickly, monkeypatch):
    monkeypatch.setenv("GRADEBENCH_CACHE", str(tmp_path_factory.getbasetemp() / "option-ends"))
    for _, option, end in (case for case in cases("tasks") if case[0] == name):
        given = BESIDE.get(name, {}) | {option: end}
        spec = f"{name}:" + ",".join(f"{key}={text_of(value)}" for key, value in given.items())
        estimator = "rloo" if name != "bernoulli-toy" else "reinforce"
        require_clear(*ended(spec, estimator, tmp_path))


def test_the_ends_of_a_range_are_what_it_says():
    options = registry.entries("estimators")["gapped-st"].options
    assert ends(options["gap"]) == [0, LARGE]
    assert ends(options["tau"]) == [5e-324, LARGE]
    assert ends(options["anneal"]) == [1]
    assert ends(registry.entries("tasks")["bernoulli-toy"].options["theta"])[-1] == 1 - 2**-53
    assert ends(registry.entries("estimators")["rebar"].options["eta"]) == [-LARGE, 0.0, LARGE]
    assert len(list(cases("estimators"))) > 100 and len(list(cases("tasks"))) > 25
