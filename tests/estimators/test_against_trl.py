"""Our gradients against those of TRL's trainers: their batch, their loss, and the same parameters moved alike.

Trainers are real ones on a tiny random Llama, without a network. Where conventions differ, the test has the factor.
TRL computes log-probabilities in float32, which is what the tolerances are for.
"""

import runpy
from pathlib import Path

import pytest
import torch

from gradebench import Problem
from gradebench.core.sampling import generator
from gradebench.estimators.actor_critic import Ppo
from gradebench.estimators.group_relative import Cispo, Dapo, DrGrpo, Grpo, Gspo, ReinforcePp
from gradebench.estimators.score_function import Rloo

T, N, PROMPTS = 3, 4, ["a film", "the actor", "one long scene", "nothing"]
BETA, LENGTHS = 0.5, (1, 2, 3, 3, 2)


def rewards(completion_ids, **_):
    """Neither additive nor quadratic in the tokens."""
    return [sum((t + 1) * token for t, token in enumerate(ids)) % 17 / 17 for ids in completion_ids]


class Batch(Problem):
    """A batch that TRL drew, its completions the only samples; rows of one prompt follow each other there."""

    offers = frozenset({"fixed_reward"})
    horizon, contexts, feature_size = T, len(PROMPTS), 2

    def __init__(self, model, inputs):
        super().__init__(list(model.parameters()))
        self.model, self.inputs, self.z = model, inputs, ours(inputs["completion_ids"])

    def sample(self, n, rng):
        assert n == len(self.z)
        return self.z

    def reward(self, z):
        return torch.tensor([rewards(rows) for rows in z.tolist()], dtype=torch.float64)

    def logits(self, z):
        rows = torch.cat([self.inputs["prompt_ids"], theirs(z)], 1)
        mask = torch.cat([self.inputs["prompt_mask"], torch.ones_like(theirs(z))], 1)
        return ours(self.model(input_ids=rows, attention_mask=mask).logits[:, -T - 1 : -1])

    def features(self, z):
        return torch.stack([torch.ones_like(z), torch.arange(T).expand_as(z)], -1).double()

    def select(self, index):
        return self if index.tolist() == list(range(self.contexts)) else pytest.fail("contexts were shuffled")

    draw = soft_reward = rollout = None  # nothing here needs them


def ours(rows):
    """(B n, ...) as TRL has it to (n, B, ...)."""
    return rows.unflatten(0, (len(PROMPTS), N)).transpose(0, 1)


def theirs(rows):
    """(n, B, ...) to (B n, ...)."""
    return rows.transpose(0, 1).flatten(0, 1)


@pytest.fixture(scope="module")
def trl():
    """Imported late, with what it needs: it takes seconds, and every process that runs tests collects this file."""
    return pytest.importorskip("trl")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folders = runpy.run_path(str(Path(__file__).parents[1] / "tiny_models.py"))["Folders"]
    return folders(tmp_path_factory.mktemp("models"))("llama")


@pytest.fixture
def made(trl, folder, tmp_path):
    """Builds a trainer, draws its first batch, and gives it with that batch and the problem that we see."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer

    def build(kind, config, **options):
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
        arguments = config(
            output_dir=str(tmp_path),
            per_device_train_batch_size=len(PROMPTS) * N,
            num_generations=N,
            max_completion_length=T,
            generation_kwargs={"min_new_tokens": T},
            beta=0.0,
            use_cpu=True,
            bf16=False,
            report_to=[],
            **options,
        )
        data = Dataset.from_list([{"prompt": prompt} for prompt in PROMPTS])
        tokenizer = AutoTokenizer.from_pretrained(folder)
        trainer = kind(
            model=model, reward_funcs=rewards, args=arguments, train_dataset=data, processing_class=tokenizer
        )
        inputs = trainer._generate_and_score_completions([row for row in data for _ in range(N)])
        assert inputs["completion_mask"].all()
        return trainer, inputs, Batch(model, inputs)

    return build


@pytest.fixture
def grpo(made, trl):
    return lambda **options: made(trl.GRPOTrainer, trl.GRPOConfig, **options)


def gradient_of(trainer, inputs, problem):
    """Of its loss, uphill."""
    return -flat(torch.autograd.grad(trainer._compute_loss(trainer.model, inputs), problem.params))


def flat(gradient):
    return torch.cat([g.detach().flatten() for g in gradient])


def move(problem):
    rng = generator("cpu", "move")
    with torch.no_grad():
        for p in problem.params:
            p.add_(torch.randn(p.shape, generator=rng, dtype=p.dtype) * 0.02)


def assert_same(found, expected):
    assert float((found - expected).norm() / expected.norm()) < 1e-5


# --- advantages


@pytest.mark.parametrize("scaled", ["group", "none"])
def test_advantages_are_those_of_trl(grpo, scaled):
    _, inputs, problem = grpo(scale_rewards=scaled)
    reward = problem.reward(problem.z)
    found, _ = (Grpo(N) if scaled == "group" else DrGrpo(N)).advantage(reward)
    torch.testing.assert_close(found, ours(inputs["advantages"]).double(), rtol=1e-5, atol=1e-5)
    assert found.abs().max() > 0.3


# --- losses, with our advantages put into their batch

CASES = {
    "grpo": (lambda e: Grpo(N, e, 1, 0.1), {"loss_type": "grpo", "epsilon": 0.1}, 1),
    "bnpo": (lambda e: Grpo(N, e, 1, 0.1), {"loss_type": "bnpo", "epsilon": 0.1}, 1),  # one length: the same mean
    "dr-grpo": (lambda e: DrGrpo(N, e, 1, 0.1), {"loss_type": "dr_grpo", "epsilon": 0.1}, T),  # divides by the length
    "dapo": (lambda e: Dapo(N, e, 1, 0.1, 0.2), {"loss_type": "dapo", "epsilon": 0.1, "epsilon_high": 0.2}, 1),
    "gspo": (
        lambda e: Gspo(N, e, 1, 0.05, 0.08),
        {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon": 0.05, "epsilon_high": 0.08},
        1,
    ),
    "cispo": (
        lambda e: Cispo(N, e, 1, clip_high=0.1),
        {"loss_type": "cispo", "epsilon_high": 1.1},
        1,
    ),  # the bound itself
    "reinforce-pp": (lambda e: ReinforcePp(N, e, 1, 0.1), {"loss_type": "grpo", "epsilon": 0.1}, 1),
    "ppo": (lambda e: Ppo(e, 1, 0.1, 0.9), {"loss_type": "dr_grpo", "epsilon": 0.1}, T),  # advantages of tokens; a sum
}


@pytest.mark.parametrize("name", CASES)
def test_gradients_on_a_fresh_batch_and_at_moved_parameters_are_those_of_trl(grpo, monkeypatch, name):
    build, options, factor = CASES[name]
    trainer, inputs, problem = grpo(**options)
    estimator = build(2)
    if name == "ppo":
        estimator.n = N
        monkeypatch.setattr(torch, "randperm", lambda n, **_: torch.arange(n))
    estimator.init(problem)
    if name == "ppo":
        with torch.no_grad():
            estimator.value.weight.copy_(torch.tensor([[0.5, -0.2]]))
    found = flat(estimator.gradient(problem, None).grad)
    inputs["advantages"] = theirs(estimator.queue[0]["advantage"])
    inputs["old_per_token_logps"] = theirs(problem.log_prob(problem.z).detach())
    assert_same(found, factor * gradient_of(trainer, inputs, problem))
    move(problem)
    found = flat(estimator.gradient(problem, None).grad)
    expected = factor * gradient_of(trainer, inputs, problem)
    assert_same(found, expected)
    trainer.epsilon_low = trainer.epsilon_high = 1e6
    assert float((found - factor * gradient_of(trainer, inputs, problem)).norm() / expected.norm()) > 0.01  # it clips


# --- with a penalty, texts of several lengths, and their own advantages


class Penalised(Batch):
    """The batch with some texts cut short, and a reference."""

    beta = BETA
    offers = frozenset()

    def __init__(self, model, inputs, reference):
        super().__init__(model, inputs)
        self.of_reference = Batch(reference, inputs).log_prob(self.z).detach()

    def alive(self, z):
        return ours(self.inputs["completion_mask"]).bool()

    def log_prob(self, z):
        return super().log_prob(z) * self.alive(z)

    def raw_reward(self, z):
        return super().reward(z)

    def reference_log_prob(self, z):
        return self.of_reference * self.alive(z)


@pytest.mark.parametrize("name", ["grpo", "dr-grpo", "dapo", "gspo", "cispo"])
def test_with_a_penalty_and_ends_gradients_are_those_of_trl(grpo, folder, name):
    from transformers import AutoModelForCausalLM

    _, options, factor = CASES[name]
    trainer, inputs, problem = grpo(**options, scale_rewards="none" if name == "dr-grpo" else "group")
    cut = torch.tensor([LENGTHS[i % len(LENGTHS)] for i in range(len(PROMPTS) * N)])
    inputs["completion_mask"] = (torch.arange(T) < cut[:, None]).to(inputs["completion_mask"])
    inputs["num_items_in_batch"] = inputs["completion_mask"].sum()
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    move(Batch(reference, inputs))
    problem = Penalised(problem.model, inputs, reference)
    trainer.beta, trainer.args.use_bias_correction_kl = BETA, False
    inputs["ref_per_token_logps"] = theirs(problem.of_reference)
    inputs["old_per_token_logps"] = theirs(problem.log_prob(problem.z).detach())
    build = {
        "grpo": lambda: Grpo(N, 2, 1, 0.1, kl="k3"),
        "dr-grpo": lambda: DrGrpo(N, 2, 1, 0.1, kl="k3"),
        "dapo": lambda: Dapo(N, 2, 1, 0.1, 0.2, kl="k3"),
        "gspo": lambda: Gspo(N, 2, 1, 0.05, 0.08, kl="k3"),
        "cispo": lambda: Cispo(N, 2, 1, clip_high=0.1, kl="k3"),
    }
    estimator = build[name]()
    for _ in range(2):
        found = flat(estimator.gradient(problem, None).grad)
        expected = factor * gradient_of(trainer, inputs, problem)
        assert_same(found, expected)
        move(problem)
    trainer.beta = 0.0
    without = factor * gradient_of(trainer, inputs, problem)
    assert float((found - without).norm() / found.norm()) > 0.01  # the penalty weighs


def test_leave_one_out_is_that_of_trl(made, trl):
    trainer, inputs, problem = made(trl.RLOOTrainer, trl.RLOOConfig, normalize_advantages=False)
    assert_same(flat(Rloo(N).gradient(problem, None).grad), gradient_of(trainer, inputs, problem))


def test_a_wrong_normaliser_would_be_seen(grpo):
    trainer, inputs, problem = grpo(loss_type="dr_grpo", scale_rewards="none")
    found = flat(DrGrpo(N).gradient(problem, None).grad)
    assert_same(found, T * gradient_of(trainer, inputs, problem))
    for factor in (1, T - 1, T * 0.75):
        assert float((found - factor * gradient_of(trainer, inputs, problem)).norm() / found.norm()) > 0.1
