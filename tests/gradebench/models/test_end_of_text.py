"""Texts that end, and prompts that are padded: nothing after an end and nothing of the padding counts anywhere."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradebench.checks import conformance, subject
from gradebench.core.sampling import generator
from gradebench.estimators.actor_critic import generalised_advantage
from gradebench.measurement.moments import flatten
from gradebench.measurement.sequence_metrics import evaluate_sequences
from gradebench.models.end_of_text import ended_logits, up_to_end
from gradebench.plugins import registry
from gradebench.problems.sequence import SequenceProblem
from gradebench.rewards.text_reward import TextReward

# The tests' folders are no packages to import from.
plain = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[2] / "plain.py")))
mutants = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[2] / "estimators" / "mutants.py")))

END = 2
ENDS = (2, 0)  # either ends a text, the first fills it up
UNBIASED = ("rebar",)


def with_ends(problem, pads=None, **changes):
    """The same problem, with an end token and, if given, padding."""
    problem.end, problem.pads = END, pads
    for name, value in changes.items():
        setattr(problem, name, value)
    return problem


@pytest.fixture
def problem(tiny_problem):
    return with_ends(tiny_problem(beta=0.3), torch.tensor([0, 1, 0, 1]))


def everything(problem):
    return problem.support().unsqueeze(1).expand(-1, problem.contexts, -1).contiguous()  # (S, B, T)


def test_a_text_goes_up_to_its_first_end():
    ids = torch.tensor([[0, 1, 1], [2, 1, 2], [0, 2, 2], [1, 1, 2]])
    expected = [[1, 1, 1], [1, 0, 0], [1, 1, 0], [1, 1, 1]]
    assert up_to_end(ids, END).int().tolist() == expected


def test_logits_after_an_end_leave_nothing_else_and_have_no_gradient():
    logits = torch.randn(2, 3, requires_grad=True)
    found = ended_logits(logits, torch.tensor([True, False]), END)
    assert found[0].softmax(-1).tolist() == [0, 0, 1]
    assert torch.equal(found[1], logits[1])
    found.square().sum().backward()
    assert logits.grad[0].abs().max() == 0


def test_probabilities_are_those_of_the_texts_cut_at_their_ends(problem):
    listed = everything(problem)
    torch.testing.assert_close(problem.log_prob(listed).sum(-1).exp().sum(0), torch.ones(4, dtype=torch.float64))
    every = torch.cartesian_prod(*[torch.arange(3)] * problem.horizon)
    z = every.unsqueeze(1).expand(-1, problem.contexts, -1).contiguous()  # (V^T, B, T)
    log_prob = problem.log_prob(z).sum(-1)
    slow = plain.PlainProblem(problem)
    alive = problem.alive(z)
    canonical = ((z == END) | alive).all(-1)  # nothing but ends behind an end
    torch.testing.assert_close(log_prob[canonical], slow.log_prob(z).sum(-1)[canonical])
    assert log_prob[~canonical].exp().max() == 0
    assert canonical[:, 0].sum() == 8 + 4 + 2 + 1  # texts without an end, and with one at each position
    assert torch.equal(listed, z[canonical[:, 0]])


def test_samples_end_once_and_for_all(problem):
    z = problem.sample(200, generator("cpu", 0))
    alive = problem.alive(z)
    assert (z[~alive] == END).all()
    assert 0.1 < (~alive).double().mean() < 0.9


@pytest.mark.parametrize("padded", [False, True])
def test_reward_and_penalty_are_those_of_the_plain_definition(problem, padded):
    problem.pads = problem.pads if padded else None
    z = everything(problem)
    torch.testing.assert_close(problem.reward(z), plain.PlainProblem(problem).reward(z), rtol=0, atol=1e-12)


def test_what_stands_after_an_end_changes_nothing(problem):
    z = problem.sample(50, generator("cpu", 0))
    other = torch.where(problem.alive(z), z, 0)
    assert not torch.equal(z, other)
    torch.testing.assert_close(problem.raw_reward(other), problem.raw_reward(z), rtol=0, atol=0)
    torch.testing.assert_close(problem.divergence(other), problem.divergence(z), rtol=0, atol=1e-12)


def test_padding_changes_nothing(tiny_problem):
    """Prompts with other tokens in front, which are said to be padding."""
    whole = with_ends(tiny_problem(beta=0.3), torch.tensor([1, 1, 1, 1]))
    other = with_ends(
        tiny_problem(beta=0.3), whole.pads, prompts=torch.cat([2 - whole.prompts[:, :1], whole.prompts[:, 1:]], 1)
    )
    z = everything(whole)
    torch.testing.assert_close(other.logits(z), whole.logits(z), rtol=0, atol=1e-12)
    torch.testing.assert_close(other.reward(z), whole.reward(z), rtol=0, atol=1e-12)
    other.pads = None
    assert (other.logits(z.clone()) - whole.logits(z)).abs().max() > 0.01


@pytest.mark.parametrize("name", ["a2c", "carms", "dapo", "dr-grpo", "es", "gapped-st", "grade", "grade-ste", "grpo",
                                  "gspo", "muprop", "ppo", "rebar", "reinforce", "reinforce-pp", "relax", "rloo"])  # fmt: skip
def test_gradient_is_that_of_the_plain_definition(problem, name):
    found = []
    for one in (problem, plain.PlainProblem(problem)):
        torch.manual_seed(0)
        estimator = registry.resolve("estimators", name).create().double()
        estimator.init(one)
        rng = generator("cpu", "draws")
        gradients = [estimator.gradient(one, rng).grad for _ in range(2 * estimator.period)]
        found.append(torch.stack([flatten(gradient) for gradient in gradients]))
    assert found[0].norm() > 1e-3
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("road", ["plain", "recorded", "parallel"])
def test_straight_through_roads_agree(tiny_problem, road):
    """The parallel one's series is exact after T terms."""
    found = []
    for one in (road, "plain"):
        problem = with_ends(tiny_problem(beta=0.3), straight_through=one, residual=0.0)
        estimator = registry.resolve("estimators", "grade-ste").create()
        found.append(flatten(estimator.gradient(problem, generator("cpu", "road")).grad))
    torch.testing.assert_close(*found, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", UNBIASED)
def test_unbiased_estimators_stay_so(name, monkeypatch):
    """False alarms 1.25e-4 a test, power 0.999 against a bias of 15 %: those of `gradebench check`."""
    build = subject.random_sequence_problem
    monkeypatch.setattr(subject, "random_sequence_problem", lambda *shape: with_ends(build(*shape)))
    findings = conformance.check(mutants.TRUE[name], only=["unbiased"])
    assert [finding.status for finding in findings] == ["pass"] * len(findings), findings


def test_the_whole_length_is_counted_where_nothing_ends(tiny_problem):
    problem = tiny_problem()
    z = problem.sample(2, generator("cpu", 0))
    assert problem.alive(z).all()
    assert (z == END).any()


def test_metrics_leave_out_what_follows_an_end(problem):
    metrics, z = evaluate_sequences(problem, generator("cpu", 3))
    slow = plain.PlainProblem(problem)
    alive, log_p = slow.alive(z[None]), slow.logits(z[None]).log_softmax(-1)
    entropies = -(log_p.exp() * log_p).sum(-1).detach()
    assert not alive.all()
    assert metrics["entropy"] == pytest.approx(float(entropies[alive].mean()))
    log_q = slow.along(problem.reference, z[None]).log_softmax(-1).gather(-1, z[None, ..., None]).squeeze(-1)
    assert metrics["reference_nll"] == pytest.approx(-float(log_q[alive].mean()))


def test_padded_prompts_are_probed_one_by_one(problem):
    with pytest.raises(NotImplementedError, match="padded"):
        problem.replicated(2)


def test_a_part_keeps_ends_and_its_own_padding(problem):
    part = problem.select(torch.tensor([1, 2]))
    assert isinstance(part, SequenceProblem)
    assert (part.end, part.pads.tolist()) == (END, [1, 0])


def test_advantage_comes_from_the_last_token_that_counts():
    reward, value, alive = torch.tensor([2.0]), torch.tensor([[0.5, 1.0, -1.0]]), torch.tensor([[True, True, False]])
    assert generalised_advantage(reward, value, 1.0, alive).tolist() == [[1.5, 1.0, 0.0]]  # return minus value
    assert generalised_advantage(reward, value, 0.0, alive).tolist() == [[0.5, 1.0, 0.0]]  # one step ahead


@pytest.mark.parametrize("name", ["grpo", "dapo", "dr-grpo"])
def test_means_over_tokens_are_over_those_that_count(tiny_problem, name):
    """GRPO: of each sequence's own; DAPO: of all in the batch; Dr. GRPO: a sum."""
    problem = with_ends(tiny_problem())
    one = {"minibatches": 1, "std": False} if name != "dr-grpo" else {}
    estimator = registry.resolve("estimators", name).factory(n=4, **one)
    z = problem.sample(4, generator("cpu", "lengths"))
    lengths = problem.alive(z).sum(-1).double()
    assert lengths.min() < lengths.max()
    weight = {"grpo": 1 / lengths, "dapo": lengths.numel() / lengths.sum(), "dr-grpo": 1.0}[name]
    reward = problem.reward(z)
    advantage = reward - reward.mean(0)
    expected = flatten(problem.grad((weight * advantage * problem.log_prob(z).sum(-1)).mean()))
    found = flatten(estimator.gradient(problem, generator("cpu", "lengths")).grad)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


# --- several ends -----------------------------------------------------------------------------------------------


@pytest.fixture
def several(tiny_problem):
    """Four tokens of which two end a text."""
    return with_ends(tiny_problem(vocabulary=4, beta=0.3), torch.tensor([0, 1, 0, 1]), end=ENDS)


def test_any_end_ends_a_text_and_the_first_fills_it_up(several):
    z = everything(several)
    log_prob, slow = several.log_prob(z).sum(-1), plain.PlainProblem(several)
    torch.testing.assert_close(log_prob.exp().sum(0), torch.ones(4, dtype=torch.float64))
    canonical = ((z == ENDS[0]) | several.alive(z)).all(-1)
    torch.testing.assert_close(log_prob[canonical], slow.log_prob(z).sum(-1)[canonical])
    assert canonical[:, 0].sum() == 2**3 + 2 * (2**2 + 2 + 1)  # without an end, and with either at each position
    drawn = several.sample(200, generator("cpu", 0))
    alive = several.alive(drawn)
    assert torch.equal(alive, slow.alive(drawn)) and (drawn[~alive] == ENDS[0]).all()
    last = drawn.gather(-1, alive.sum(-1, keepdim=True) - 1)
    assert set(last[alive.sum(-1) < 3].tolist()[0]) <= set(ENDS) and (last == ENDS[1]).any()


@pytest.mark.parametrize("padded", [False, True])
def test_reward_and_penalty_with_several_ends_are_those_of_the_plain_definition(several, padded):
    several.pads = several.pads if padded else None
    z = everything(several)
    torch.testing.assert_close(several.reward(z), plain.PlainProblem(several).reward(z), rtol=0, atol=1e-12)
    other = torch.where(several.alive(z), z, 1)
    torch.testing.assert_close(several.reward(other), several.reward(z), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["dapo", "grade", "grade-ste", "ppo", "rebar", "reinforce"])
def test_gradient_with_several_ends_is_that_of_the_plain_definition(several, name):
    test_gradient_is_that_of_the_plain_definition(several, name)


@pytest.mark.parametrize("road", ["plain", "recorded", "parallel"])
def test_straight_through_roads_agree_with_several_ends(tiny_problem, road):
    found = []
    for one in (road, "plain"):
        problem = with_ends(tiny_problem(4, beta=0.3), end=ENDS, straight_through=one, residual=0.0)
        estimator = registry.resolve("estimators", "grade-ste").create()
        found.append(flatten(estimator.gradient(problem, generator("cpu", "road")).grad))
    torch.testing.assert_close(*found, rtol=0, atol=1e-10)


def test_a_text_that_is_shown_stops_before_its_end_and_has_no_padding(several):
    z = torch.tensor([[1, 3, 1], [0, 2, 2], [3, 0, 2], [2, 2, 2]])
    prompts, pads = several.prompts.tolist(), several.pads.tolist()
    kept = [[1, 3, 1], [], [3], []]
    assert several.texts(z) == [p[pad:] + rest for p, pad, rest in zip(prompts, pads, kept, strict=True)]


@settings(max_examples=50, deadline=None, database=None, derandomize=True)
@given(
    prompt=st.lists(st.integers(3, 6), min_size=1, max_size=3),
    rest=st.lists(st.integers(3, 6), max_size=4),
    end=st.sampled_from([None, 2, (2, 0), (0, 2)]),
    closing=st.integers(0, 1),
    fill=st.integers(0, 3),
)
def test_a_reward_of_texts_is_told_prompt_and_completion_without_ends_and_padding(prompt, rest, end, closing, fill):
    """Rows as a problem hands them on: what counts, an end and its filler, then the prompt's padding."""
    ends = () if end is None else (end,) if isinstance(end, int) else end
    tail = [ends[closing % len(ends)], *[ends[0]] * fill] if ends else []
    seen = []
    reward = TextReward(
        lambda *texts: seen.append(texts) or [0.0], lambda rows: ["".join(map(str, row)) for row in rows], 3, end
    )
    padding = [9] * (3 - len(prompt))
    row = torch.tensor([prompt + rest + tail + padding])
    keep = (torch.arange(row.shape[1]) < len(prompt + rest)).float()[None]
    reward(row, keep)
    assert seen == [(["".join(map(str, prompt))], ["".join(map(str, rest))])]
