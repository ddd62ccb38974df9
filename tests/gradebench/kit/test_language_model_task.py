"""A text task of one page over the kit: with a reward that reads texts and with one that has a derivative."""

import runpy
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated

import pytest
import torch

from gradebench import DifferentiableReward, InputError, LanguageModelTask, Unsupported
from gradebench.core.options import bind, options_of
from gradebench.core.sampling import generator
from gradebench.experiment import cell_setup
from gradebench.experiment.loaded import set_parameters
from gradebench.experiment.plan import Plan
from gradebench.kit import making
from gradebench.kit.language_model_task import ADAPTERS_LEARNING_RATE, PRETRAINED_LEARNING_RATE
from gradebench.kit.making import Pretraining
from gradebench.kit.options import Kl, Policy
from gradebench.plugins import registry

# The tests' folders are no packages to import from.
tiny_models = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[2] / "tiny_models.py")))
CPU = torch.device("cpu")
OPENINGS = [" ".join(words) for words in product(["the", "one"], ["old", "", "tall"], ["cook", "thief"])]
OPENINGS = [" ".join(opening.split()) for opening in OPENINGS]  # of two and of three words
QUICK = Pretraining(width=16, layers=1, heads=2, steps=20, batch=16)


class Counts(LanguageModelTask):
    """Rewards a word, by a function of texts."""

    horizon = 5
    pretraining = QUICK

    def __init__(self, wanted: Annotated[str, "the word"] = "coin", kl: Kl = 0.1, policy: Policy = "scratch"):
        super().__init__(kl, policy, wanted=wanted)

    def prompt_texts(self):
        return OPENINGS

    def corpus(self):
        return [f"{opening} saw a {thing} ." for opening, thing in product(OPENINGS, ["ship", "coin"])]

    def score(self, prompts, completions):
        return [text.split().count(self.options["wanted"]) for text in completions]


class Share(DifferentiableReward):
    """The share of a word in the text."""

    def worth(self, embedded, keep):
        return (embedded[..., 0] * keep).sum(1) / keep.sum(1)


class Soft(Counts):
    """Rewards the same word, with a derivative."""

    def make_reward(self):
        weight = torch.zeros(len(self.vocabulary), 1)
        weight[self.vocabulary.encode([self.options["wanted"]])[0]] = 1
        return Share(weight)

    def gold_rewards(self, texts):
        return [float("coin" in text) for text in texts]


@pytest.fixture(scope="module", autouse=True)
def one_cache(tmp_path_factory):
    """Of the module, so that each policy is made once."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADEBENCH_CACHE", str(folder))
        yield folder


@pytest.fixture(autouse=True)
def own_cache(one_cache, monkeypatch):
    monkeypatch.setenv("GRADEBENCH_CACHE", str(one_cache))


def loaded(cls, **options):
    task = cls(**options)
    task.prepare(CPU, log=lambda message: None)
    task.load(CPU)
    return task


def refusal_of(cls, **options):
    with pytest.raises(InputError) as refusal:
        loaded(cls, **options)
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


def like(**own):
    """A task like Counts, with methods or numbers of its own."""
    return type("Counts", (Counts,), {k: v if isinstance(v, int) else (lambda self, v=v: v) for k, v in own.items()})


@pytest.fixture(scope="module")
def counts(one_cache):
    return loaded(Counts)


@pytest.fixture(scope="module")
def soft(one_cache):
    return loaded(Soft)


# --- the page -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["rloo", "grpo", "ppo"])
def test_estimators_that_need_no_derivative_make_a_gradient(counts, name):
    problem = counts.problem("train", torch.arange(4))
    estimate = cell_setup.make_estimator(name, counts, Plan("run", "", "cpu", 2, 16, 0.1)).gradient(
        problem, generator(CPU)
    )
    assert sum(float(gradient.abs().sum()) for gradient in estimate.grad) > 1e-6


@pytest.mark.parametrize("name", ["grade", "grade-ste", "rebar", "rloo"])
def test_relaxations_follow_a_reward_with_a_derivative(soft, name):
    problem = soft.problem("train", torch.arange(4))
    estimate = cell_setup.make_estimator(name, soft, Plan("run", "", "cpu", 2, 16, 0.1)).gradient(
        problem, generator(CPU)
    )
    assert sum(float(gradient.abs().sum()) for gradient in estimate.grad) > 1e-6


def test_relaxations_are_skipped_with_the_reason_where_a_reward_reads_texts(counts):
    with pytest.raises(Unsupported, match="reads texts, which have no derivative"):
        cell_setup.make_estimator("grade", counts, Plan("run", "", "cpu", 2, 16, 0.1))


def test_a_reward_is_of_what_the_policy_wrote_after_the_prompt(counts, soft):
    for task, share in ((counts, False), (soft, True)):
        problem = task.problem("test", torch.arange(2))
        z = torch.tensor(task.vocabulary.encode(["coin saw coin a .", "a a a a ."]))
        words = [len(prompt.split()) for prompt in task.vocabulary.decode(problem.texts(z[:, :0]))]
        expected = [2 / (words[0] + 5) if share else 2, 0]
        assert problem.raw_reward(z[None]).tolist()[0] == pytest.approx(expected)


def test_a_score_may_take_whole_texts():
    class Whole(Counts):
        def score(self, texts):
            return [len(text.split()) for text in texts]

    for sample in loaded(Whole).samples("test", generator(CPU)):
        assert sample["reward"] == len(sample["text"].split())


def test_a_reward_given_by_name_takes_the_place_of_the_pages_own(tmp_path, counts):
    class Open(LanguageModelTask):
        prompt_texts, corpus, pretraining, horizon = Counts.prompt_texts, Counts.corpus, QUICK, 5

    file = tmp_path / "mine.py"
    file.write_text("def score(prompts, completions):\n    return [len(text) for text in completions]\n")
    task = loaded(Open, reward=f"{file}:score")
    assert " reward=mine.py:score:" in task.setting and "reads texts" in task.lacks["soft_reward"]
    for sample in task.samples("test", generator(CPU)):
        assert sample["reward"] == len(sample["text"]) - len(sample["prompt"])
    file.write_text("def score(texts):\n    return [1 for text in texts]\n")
    with pytest.raises(InputError, match="was changed after the run had started; run again"):
        task.load(CPU)


def test_shorter_prompts_stand_behind_padding_that_nobody_reads(counts):
    assert counts.width == 3 and counts.pads["train"].any()
    problem = counts.problem("train", torch.arange(counts.sizes["train"]))
    z = problem.sample(1, generator(CPU))
    other = problem.prompts.where(torch.arange(3) >= problem.pads[:, None], 1 + problem.prompts)
    before = problem.log_prob(z), problem.raw_reward(z)
    problem.prompts, problem._memo = other, None
    assert torch.equal(before[0], problem.log_prob(z)) and torch.equal(before[1], problem.raw_reward(z))
    texts = counts.vocabulary.decode(problem.texts(z[0]))
    assert all(any(text.startswith(opening) for opening in OPENINGS) for text in texts)


def test_prompts_are_dealt_out_to_disjoint_splits(counts):
    texts = counts.read_prompts().splits
    assert sorted(text for part in texts.values() for text in part) == sorted(OPENINGS)
    assert (
        {split: len(part) for split, part in texts.items()} == counts.sizes == {"train": 8, "validation": 2, "test": 2}
    )


def test_metrics_have_the_documented_keys(counts, soft):
    documented = {line.split()[0] for line in LanguageModelTask.evaluate.__doc__.splitlines()[2:-1] if line.strip()}
    assert set(soft.evaluate("test", generator(CPU))) == documented
    assert set(counts.evaluate("test", generator(CPU))) == documented - {"gold_reward"}  # there is no judge
    (sample, *_) = counts.samples("test", generator(CPU))
    assert sample["reward"] == sample["text"].removeprefix(sample["prompt"]).split().count("coin")
    assert sample["prompt"] in OPENINGS and len(sample["text"].split()) == len(sample["prompt"].split()) + 5


def test_a_policy_moves_away_from_its_reference_towards_the_reward(soft):
    start = [p.detach().clone() for p in soft.params]
    optimizer, rng = torch.optim.Adam(soft.params, lr=0.02), generator(CPU)
    estimator = cell_setup.make_estimator("rloo", soft, Plan("run", "", "cpu", 30, 32, 0.02))
    before = soft.evaluate("train", generator(CPU))
    for _ in range(30):
        estimate = estimator.gradient(soft.problem("train", torch.arange(8)), rng)
        for p, gradient in zip(soft.params, estimate.grad, strict=True):
            p.grad = -gradient
        optimizer.step()
    after = soft.evaluate("train", generator(CPU))
    set_parameters(soft, {f"parameter_{i}": p for i, p in enumerate(start)})
    assert before["kl"] == pytest.approx(0, abs=1e-6) and after["kl"] > 0.01
    assert after["reward"] > before["reward"] + 0.05


# --- options, setting, cache --------------------------------------------------------------------------------------


def test_a_page_without_a_constructor_has_the_options_of_the_kit():
    class Plain(LanguageModelTask):
        pass

    assert list(options_of(Plain)) == ["kl", "policy", "reward", "lora", "precision", "instance"]
    assert Plain(**bind(Plain, {"kl": "0.5"}, "task")).options["kl"] == 0.5


def test_a_worker_builds_the_same_task(counts):
    worker = Counts(**counts.options)
    worker.prepared = counts.prepared
    worker.load(CPU)
    assert worker.options == {"wanted": "coin", "kl": 0.1, "policy": "scratch"} and worker.setting == counts.setting
    assert all(torch.equal(a, b) for a, b in zip(worker.params, counts.params, strict=True))


def test_an_option_that_isnt_passed_on_is_refused():
    class Forgets(LanguageModelTask):
        def __init__(self, wanted: str = "coin"):
            super().__init__()

    with pytest.raises(TypeError, match=r"Forgets takes wanted; pass it on: super\(\).__init__\(wanted=wanted\)"):
        Forgets()


def test_the_setting_says_what_ran(counts, tmp_path):
    assert counts.setting == "wanted=coin policy=scratch kl=0.1"
    file = tmp_path / "openings.txt"
    file.write_text("\n".join(OPENINGS), encoding="utf-8")
    from_file = loaded(like(prompt_texts=file))
    assert (
        from_file.setting
        == f"wanted=coin prompts=openings.txt:{from_file.prepared['prompts'][:8]} policy=scratch kl=0.1"
    )
    assert from_file.folder == counts.folder, "the same prompts, wherever they are from"


def test_neither_beta_nor_an_option_of_the_reward_makes_another_policy(counts, monkeypatch):
    monkeypatch.setattr(making, "pretrain_policy", None)  # calling it would raise
    assert loaded(Counts, kl=0.0, wanted="ship").folder == counts.folder


def test_another_corpus_or_another_instance_makes_another_policy(counts):
    class Instances(Counts):
        def __init__(self, instance: int = 0):
            LanguageModelTask.__init__(self, instance=instance, wanted="coin")

    other = loaded(like(corpus=[f"{opening} found a coin ." for opening in OPENINGS]))
    first, second = loaded(Instances), loaded(Instances, instance=1)
    assert len({task.folder for task in (counts, other, second)}) == 3
    assert second.read_prompts() != first.read_prompts() and second.setting.endswith(" instance=1")


def test_prompts_that_change_while_a_run_goes_on_are_refused(tmp_path):
    file = tmp_path / "openings.txt"
    file.write_text("\n".join(OPENINGS), encoding="utf-8")
    task = loaded(like(prompt_texts=file))
    assert task.digests()["prompts"] == task.prepared["prompts"][:16]
    file.write_text("\n".join(OPENINGS[1:]), encoding="utf-8")
    with pytest.raises(InputError, match="were changed after the run had started; run again"):
        task.load(CPU)


def test_a_given_policy_needs_no_corpus_and_has_a_rate_of_its_own(tmp_path):
    folder = str(tiny_models.Folders(tmp_path)("gpt2"))
    assert "its context of 48 tokens is shorter than prompt and horizon together (69" in refusal_of(
        Counts, policy=folder
    )
    task = loaded(like(corpus=None, longest_prompt=32), policy=folder)
    assert task.learning_rate == PRETRAINED_LEARNING_RATE and task.folder is None
    assert set(task.digests()) == {"prompts"} and task.evaluate("test", generator(CPU))["kl"] == pytest.approx(
        0, abs=1e-6
    )
    assert ADAPTERS_LEARNING_RATE > PRETRAINED_LEARNING_RATE


def test_a_saved_policy_serves_as_one_that_is_given(counts, tmp_path):
    counts.save_policy(tmp_path)
    again = loaded(Counts, policy=str(tmp_path))
    assert again.learning_rate == counts.learning_rate
    assert all(torch.equal(a, b) for a, b in zip(again.params, counts.params, strict=True))


# --- what won't do ------------------------------------------------------------------------------------------------


def lines(tmp_path, *texts):
    file = tmp_path / "prompts.txt"
    file.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    return file


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        ((), "prompts.txt: no text in it"),
        (("", "  "), "prompts.txt: no text in it"),
        (OPENINGS[:9], "prompts.txt: 9 are too few for train, validation, test; give 10 or more"),
        ((*OPENINGS, OPENINGS[3]), f"'{OPENINGS[3]}' is there twice"),
        ((*OPENINGS, "the  old cook"), "'the  old cook' have the same tokens"),
        ((*OPENINGS, "the old " * 40 + "cook"), "has 81 tokens, where 64 are the most"),
    ],
)
def test_prompts_that_wont_do_are_said_in_one_line(tmp_path, texts, said):
    refusal = refusal_of(like(prompt_texts=lines(tmp_path, *texts)))
    assert said in refusal or said.replace("'the  old cook' have", "have") in refusal


def test_a_file_of_prompts_that_cant_be_read_is_said_in_one_line(tmp_path):
    assert "no-such.txt: No such file or directory" in refusal_of(like(prompt_texts=tmp_path / "no-such.txt"))
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
    assert "isn't UTF-8 (byte 3)" in refusal_of(like(prompt_texts=tmp_path / "latin.txt"))
    assert "'' is among the texts" in refusal_of(like(prompt_texts=[*OPENINGS, ""]))
    assert "prompts for test; give train, validation, test" in refusal_of(like(prompt_texts={"test": OPENINGS}))


def test_a_task_that_lacks_a_part_is_refused():
    class NoReward(LanguageModelTask):
        prompt_texts, corpus, pretraining = Counts.prompt_texts, Counts.corpus, QUICK

    assert "noreward has no reward: write its score" in refusal_of(NoReward)
    assert "has no corpus; give policy=" in refusal_of(like(corpus=None))
    assert "the corpus has 3 tokens, prompt and horizon 8" in refusal_of(like(corpus=["the old cook"]))


def test_a_score_that_isnt_a_number_for_each_text_fails_in_one_line(counts):
    for answer, said in (([1.0], "gave 1 number for 2 texts"), ([1, float("nan")], "gave nan"), (None, "gave None")):
        task = like(score=0)()
        task.score = lambda prompts, completions, answer=answer: answer
        task.prepare(CPU, log=lambda message: None)
        task.load(CPU)
        problem = task.problem("train", torch.arange(2))
        with pytest.raises(InputError, match=rf"reward Counts.score {said}"):
            problem.reward(problem.sample(1, generator(CPU)))


class Detached(Share):
    def worth(self, embedded, keep):
        return super().worth(embedded, keep).detach()


class Whole(Share):
    def worth(self, embedded, keep):
        return super().worth(embedded, keep).mean()


class Rounds(Share):
    def embed(self, tokens):
        return super().embed(tokens) * (2 if tokens.is_floating_point() else 1)


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (Detached, "has no derivative"),
        (Whole, "gave the shape [] for two texts"),
        (Rounds, "in another way than their ids"),
    ],
)
def test_a_reward_whose_derivative_wont_do_is_refused(kind, said):
    class Wrong(Counts):
        def make_reward(self):
            return kind(torch.arange(len(self.vocabulary)).float()[:, None])

    assert said in refusal_of(Wrong)


def test_adapters_are_for_a_given_policy():
    with pytest.raises(InputError, match="lora=4 is for a given policy"):
        LanguageModelTask(lora=4)


def test_the_tasks_that_come_with_the_package_are_built_on_the_kit():
    for name in ("imdb", "arithmetic", "enumerable-lm"):
        assert issubclass(registry.load("tasks", name).factory, LanguageModelTask)
