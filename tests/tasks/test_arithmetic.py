"""The task arithmetic: disjoint problems, exact checks, and estimators that learn on it."""

import itertools
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from gradebench import InputError, Unsupported
from gradebench.core.sampling import generator
from gradebench.experiment import cell_setup, training
from gradebench.experiment.loaded import set_parameters
from gradebench.experiment.plan import Plan
from gradebench.experiment.training import Trainer
from gradebench.kit.language_model_task import PRETRAINED_LEARNING_RATE
from gradebench.tasks import arithmetic
from gradebench.tasks.arithmetic import Arithmetic, Characters, Pretraining, answer_of, right

# The tests' folders are no packages to import from.
tiny_models = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "tiny_models.py")))
CPU = torch.device("cpu")
SMALL = Pretraining(width=32, layers=1, heads=2, steps=200, batch=64, learning_rate=1e-2, wrong=0.4)


@pytest.fixture(scope="module", autouse=True)
def small_and_apart(tmp_path_factory):
    """A policy that is pretrained in seconds, and nothing read from the user's cache or left in it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADEBENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(arithmetic, "Pretraining", lambda: SMALL)
        yield


def loaded(**options):
    task = Arithmetic(**options)
    task.prepare(CPU, log=lambda message: None)
    task.load(CPU)
    return task


@pytest.fixture(scope="module")
def task(small_and_apart):
    return loaded(digits=1)


# --- problems ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"digits": 3, "operators": "+-*"}, {"digits": 1, "operators": "-"}])
def test_no_problem_or_its_mirror_image_is_in_two_parts(options):
    parts = Arithmetic(**options)._problems()
    seen = {}
    for part, prompts in parts.items():
        assert prompts and len(set(prompts)) == len(prompts)
        for prompt in prompts:
            a, operator, b = arithmetic._PROMPT.search(prompt).groups()
            assert seen.setdefault((operator, *sorted((a, b))), part) == part
    assert set(parts) == {"pretraining", "train", "validation", "test"}


def test_every_answer_and_its_end_fit():
    for options in ({"digits": 2}, {"digits": 2, "operators": "+-*"}, {"digits": 3, "operators": "-"}):
        task = Arithmetic(**options)
        for prompt in itertools.chain.from_iterable(task._problems().values()):
            assert len(str(answer_of(prompt))) < task._answer_length and len(prompt) <= task._prompt_length


def test_answers_are_checked_exactly():
    prompts = [" 17+5=", "3-12=", "99*99=", "17+5=", "17+5=", "1+2="]
    assert right(prompts, ["22", "-9", "9801", "23", "221", " 3 "]) == [1, 1, 1, 0, 0, 1]
    assert Characters().decode(Characters().encode(["17+5=22.3"])) == ["17+5=22"]


def test_what_follows_the_end_counts_for_nothing(task):
    problem = task.problem("train", torch.arange(2))
    answers = [str(answer_of(text)) for text in task.vocabulary.decode(problem.prompts.tolist())]
    z = torch.tensor(
        task.vocabulary.encode([f"{answer}.77"[: problem.horizon].ljust(problem.horizon, ".") for answer in answers])
    )
    assert problem.reward(z[None]).tolist() == [[1, 1]]


@pytest.mark.parametrize("operators", ["/", "++", "+/"])
def test_unknown_operators_are_refused(operators):
    with pytest.raises(InputError, match=r"give some of \+ - \*"):
        Arithmetic(operators=operators)


# --- the task ---------------------------------------------------------------------------------------------------


def test_the_setting_names_what_ran_and_the_gold_reward_is_the_reward(task):
    assert task.setting == "digits=1 operators=+ policy=scratch kl=0.01"
    metrics = task.evaluate("test", generator(CPU))
    assert metrics["gold_reward"] == metrics["reward"]
    for sample in task.samples("train", generator(CPU)):
        expected = sample["text"] == f"{sample['prompt']}{answer_of(sample['prompt'])}"
        assert sample["reward"] == float(expected)


def test_relaxations_are_skipped_with_the_reason(task):
    plan = Plan("run", "", "cpu", 2, 8, 0.1)
    for name in ("grade", "grade-ste", "rebar"):
        with pytest.raises(Unsupported, match="right or wrong, which has no derivative"):
            cell_setup.make_estimator(name, task, plan)


@pytest.mark.parametrize("name", ["rloo", "reinforce"])
def test_score_functions_learn_to_answer(task, name):
    start = [p.detach().clone() for p in task.params]
    before = task.evaluate("train", generator(CPU, "evaluation"))["reward"]
    gains = []
    for seed in range(3):
        set_parameters(task, {f"parameter_{i}": p for i, p in enumerate(start)})
        plan = Plan("run", "", "cpu", 40, 64, 3e-3)
        estimator = cell_setup.make_estimator(name, task, plan).train()
        trainer, rng = Trainer(estimator, task, plan, 3e-3), generator(CPU, seed)
        for index, _ in zip(training.batches(task, plan, estimator.n, seed), range(plan.steps), strict=False):
            trainer.step(task.problem("train", index), rng)
        hard = [task.evaluate("train", generator(CPU, "evaluation", i))["reward"] for i in range(8)]
        gains.append(sum(hard) / len(hard) - before)
    set_parameters(task, {f"parameter_{i}": p for i, p in enumerate(start)})
    assert min(gains) > 0.15, (before, gains)


def test_a_given_policy_reads_the_problems_behind_padding(tmp_path):
    folder = tiny_models.Folders(tmp_path)("llama", template="<s> $A")
    task = loaded(policy=str(folder))
    assert task.pads["train"].any() and task.learning_rate == PRETRAINED_LEARNING_RATE
    for prompt, pads in zip(task.prompts["train"].tolist(), task.pads["train"].tolist(), strict=True):
        assert prompt[pads] == 1  # BOS, where the text begins
        answer_of(task.vocabulary.decode([prompt[pads:]])[0])
    problem = task.problem("train", torch.arange(6))
    reward = problem.reward(problem.sample(2, generator(CPU)))
    assert reward.shape == (2, 6)
    answers = [
        str(answer_of(text))
        for text in task.vocabulary.decode(
            [p[n:] for p, n in zip(problem.prompts.tolist(), problem.pads.tolist(), strict=True)]
        )
    ]
    rows = [task.vocabulary.encode([answer])[0][1:] for answer in answers]
    z = torch.tensor([(row + [task.vocabulary.end] * problem.horizon)[: problem.horizon] for row in rows])
    assert problem.raw_reward(z[None]).tolist() == [[float(len(row) <= problem.horizon) for row in rows]]


# --- instances ------------------------------------------------------------------------------------------------------


def test_an_instance_has_its_own_problems_and_policy(task):
    other = loaded(digits=1, instance=1)
    assert other._problems() != task._problems() and "instance=1" in other.setting and "instance" not in task.setting
    assert any(not torch.equal(a, b) for a, b in zip(other.params, task.params, strict=True))


def test_neither_beta_nor_the_first_instance_makes_another_policy(task):
    """A sweep over kl pretrains once, and instance 0 is what a task without instances was."""
    assert loaded(digits=1, kl=0.5).folder == loaded(digits=1, instance=0).folder == task.folder
    assert (
        "instance" not in (task.folder / "facts.json").read_text()
        and "kl" not in (task.folder / "facts.json").read_text()
    )
