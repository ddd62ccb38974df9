"""Samples that don't come from the policy: `sample` and `behaviour_log_prob` agree, everything else stays the policy's."""

import copy

import pytest
import scipy.stats
import torch

from gradebench import Unsupported, generator
from gradebench.core.problem import Behaviour
from gradebench.core.sampler import Sampler
from gradebench.problems.enumerable import random_sequence_problem

SAMPLERS = {
    "temperature": Sampler(temperature=0.6),
    "top_k": Sampler(top_k=2),
    "top_p": Sampler(top_p=0.7),
    "noise": Sampler(noise=0.5),
    "bfloat16": Sampler(noise="bfloat16"),
    "stale": Sampler(stale=1),
    "all": Sampler(stale=1, temperature=1.3, top_k=2, top_p=0.95, noise=0.2),
}


def sampled(problem, sampler):
    old = None
    if sampler.stale:
        old = copy.deepcopy(problem.policy).requires_grad_(False)
        for p in old.parameters():
            p.mul_(0.8)
    return problem.sampled_by(Behaviour(sampler, old))


def everything(problem):
    return problem.support().unsqueeze(1).expand(-1, problem.contexts, -1)


@pytest.mark.parametrize("end", [False, True])
@pytest.mark.parametrize("name", SAMPLERS)
def test_its_probabilities_sum_to_one_and_are_those_of_its_draws(name, end):
    """Of all texts: a chi-squared test with 4,000 draws of each context. False alarm rate 1e-4; a sampler that draws from
    the policy itself is seen in the same test below."""
    problem = sampled(random_sequence_problem(3, 3, 4, end=end), SAMPLERS[name])
    assert p_value(problem, problem) > 1e-4


@pytest.mark.parametrize("name", sorted(set(SAMPLERS) - {"bfloat16"}))
def test_the_policy_itself_is_told_from_it(name):
    policy = random_sequence_problem(3, 3, 4)
    assert p_value(policy, sampled(policy, SAMPLERS[name])) < 1e-8


def p_value(drawn_from, said):
    """Whether draws of one problem follow `behaviour_log_prob` of another."""
    z = everything(said)
    mu = said.behaviour_log_prob(z).sum(-1).exp()  # (S, B)
    torch.testing.assert_close(mu.sum(0), torch.ones_like(mu[0]), rtol=0, atol=1e-12)
    draws = drawn_from.sample(4000, generator("cpu", "draws"))
    assert not draws.requires_grad
    same = (draws.unsqueeze(1) == z.unsqueeze(0)).all(-1)  # (n, S, B)
    assert same.sum() <= draws.shape[0] * draws.shape[1]
    found, expected = same.sum(0).double().flatten(), (4000 * mu).flatten()
    if (found[expected == 0] > 0).any() or same.sum() < draws.shape[0] * draws.shape[1]:
        return 0.0
    found, expected = found[expected > 0].numpy(), expected[expected > 0].numpy()
    statistic = ((found - expected) ** 2 / expected).sum()
    return float(scipy.stats.chi2.sf(statistic, len(found) - said.contexts))


def test_by_default_the_policy_samples(tiny_problem):
    problem = tiny_problem()
    z = problem.sample(2, generator("cpu", 0))
    assert torch.equal(problem.behaviour_log_prob(z), problem.log_prob(z).detach())
    assert not problem.behaviour_log_prob(z).requires_grad
    assert problem.sampled_by(None) is problem


def test_all_but_the_samples_stay_the_policys(tiny_problem):
    plain = tiny_problem(beta=0.2)
    problem = sampled(plain, SAMPLERS["all"])
    z = plain.sample(2, generator("cpu", 0))
    for name in ("log_prob", "reward", "divergence", "logits", "features"):
        assert torch.equal(getattr(problem, name)(z), getattr(plain, name)(z)), name
    for one, other in zip(problem.exact_gradient(), plain.exact_gradient(), strict=True):
        assert torch.equal(one, other)
    rolled = [p.rollout(lambda logits: logits.softmax(-1), 2) for p in (problem, plain)]
    assert torch.equal(*rolled)
    assert problem.behaviour is not None and plain.behaviour is None


def test_what_is_drawn_before_the_gradient_doesnt_break_it(tiny_problem):
    """The old policy's draws and log-probabilities between the policy's pass and its backward pass."""
    plain = tiny_problem(beta=0.2)
    problem = sampled(plain, SAMPLERS["all"])
    z = problem.sample(2, generator("cpu", 0))
    value = problem.log_prob(z).sum()
    problem.behaviour_log_prob(z)
    problem.sample(2, generator("cpu", 1))
    for one, other in zip(problem.grad(value), plain.grad(plain.log_prob(z).sum()), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_parts_and_copies_keep_it(tiny_problem):
    problem = sampled(tiny_problem(), SAMPLERS["all"])
    z = problem.sample(3, generator("cpu", 0))
    part = problem.select(torch.tensor([2, 0]))
    torch.testing.assert_close(part.behaviour_log_prob(z[:, [2, 0]]), problem.behaviour_log_prob(z)[:, [2, 0]])
    copies = problem.replicated(2)
    torch.testing.assert_close(copies.behaviour_log_prob(z), problem.behaviour_log_prob(z))
    assert torch.equal(copies.sample(3, generator("cpu", 0)), z)


def test_nothing_follows_an_end():
    problem = sampled(random_sequence_problem(3, 3, 4, end=True), SAMPLERS["noise"])
    z = problem.sample(20, generator("cpu", 0))
    log_mu = problem.behaviour_log_prob(z)
    assert not problem.alive(z).all()
    assert (log_mu[~problem.alive(z)] == 0).all() and (log_mu[problem.alive(z)] < 0).all()


def test_reading_its_probabilities_is_one_pass(tiny_problem):
    problem = sampled(tiny_problem(), SAMPLERS["stale"])
    z = problem.sample(2, generator("cpu", 0))
    before = problem.ledger.forward_passes
    problem.behaviour_log_prob(z)
    assert problem.ledger.forward_passes == before + 1


def test_a_problem_of_another_kind_refuses(bernoulli_toy):
    with pytest.raises(Unsupported, match="can only sample from its policy"):
        bernoulli_toy().sampled_by(Behaviour(Sampler(temperature=0.5)))
