"""Every option of `policy-gradient`: what it says of its bias is what enumeration finds, and the named estimators are points of it."""

import math

import pytest
import torch

from gradebench import generator
from gradebench.core.problem import Behaviour
from gradebench.core.sampler import Sampler
from gradebench.estimators.group_relative import DrGrpo, Grpo, ReinforcePp
from gradebench.estimators.policy_gradient import PolicyGradient
from gradebench.estimators.score_function import Reinforce, Rloo
from gradebench.measurement.expectation import expectation
from gradebench.measurement.moments import flatten
from gradebench.problems.enumerable import random_sequence_problem

MISMATCH = Sampler(temperature=0.7, noise=0.3)
OF_GROUP = {"n": 4, "baseline": "group", "kl_in": "loss"}


@pytest.fixture(scope="module")
def problem():
    """Texts of 1 to 3 tokens, two contexts; samples of a context and baselines differ."""
    return random_sequence_problem(3, 3, 2, beta=0.1, end=True)


def relative_bias(problem, jointly=False, **options):
    truth = flatten(problem.exact_gradient())
    return expectation(PolicyGradient(**{"n": 2} | options), problem, jointly).compared(truth)["bias_squared"]


@pytest.mark.parametrize("named, options", [
    (Rloo(), {}),
    (Rloo(n=2), {"n": 2}),
    (Reinforce(baseline="none"), {"n": 1, "baseline": "none"}),
    (Reinforce(), {"n": 1, "baseline": "ema"}),
    (DrGrpo(), OF_GROUP),
    (DrGrpo(kl="k3"), OF_GROUP | {"kl": "k3"}),
    (Grpo(), OF_GROUP | {"scale": "group", "aggregate": "sequence-mean"}),
    (Grpo(kl="k3"), OF_GROUP | {"scale": "group", "aggregate": "sequence-mean", "kl": "k3"}),
    (ReinforcePp(n=4, minibatches=1, whiten=False, kl="loss"), {"baseline": "none", "kl_in": "loss", "aggregate": "sequence-mean"}),
], ids=lambda one: type(one).__name__)  # fmt: skip
def test_the_named_estimators_are_points_of_it(problem, named, options):
    found = []
    for estimator in (named, PolicyGradient(**options)):
        rng = generator("cpu", "same")
        estimator.init(problem)
        found.append(torch.stack([flatten(estimator.gradient(problem, rng).grad) for _ in range(3)]))
    torch.testing.assert_close(*found, rtol=0, atol=1e-12)


SINGLE = [{}, *({"baseline": one} for one in ("group", "opo", "opo-loo", "otb", "otb-loo", "greedy", "none")), {"scale": "group"}, {"n": 1, "baseline": "ema"},
          {"kl": "k1"}, {"kl": "k2"}, {"kl": "k3"}, *({"kl": one, "kl_in": "loss"} for one in ("exact", "k1", "k2", "k3", "k3-corrected")),
          *({"aggregate": one} for one in ("constant", "sequence-mean")), {"baseline": "none", "kl": "k1"}]  # fmt: skip
JOINT = [{"baseline": "batch"}, {"scale": "batch"}, {"aggregate": "token-mean"}, {"aggregate": "micro-mean"}]


@pytest.mark.parametrize("options", SINGLE, ids=str)
def test_on_policy_it_is_unbiased_where_it_says_so_and_nowhere_else(problem, options):
    bias = relative_bias(problem, **options)
    assert (bias < 1e-20) == PolicyGradient(**{"n": 2} | options).unbiased
    assert bias < 1e-20 or bias > 1e-4


@pytest.mark.parametrize("options", JOINT, ids=str)
def test_so_are_those_that_mix_contexts(options):
    """Two tokens or one, so that pairs of samples of both contexts can be listed."""
    problem = random_sequence_problem(2, 2, 2, beta=0.1, end=True)
    bias = relative_bias(problem, jointly=True, **options)
    assert not PolicyGradient(**{"n": 2} | options).unbiased and bias > 1e-4


@pytest.mark.parametrize("importance", ["none", "token", "sequence", "prefix", "geometric"])
@pytest.mark.parametrize("options", [{}, {"baseline": "greedy", "kl": "k1"}, {"baseline": "otb-loo"}, {"truncate": 1.2}, {"mask_below": 0.9}, {"mask_above": 1.1},
                                     {"kl": "k2", "kl_in": "loss"}], ids=str)  # fmt: skip
def test_off_policy_it_is_unbiased_where_it_says_so_and_nowhere_else(problem, importance, options):
    bias = relative_bias(problem.sampled_by(Behaviour(MISMATCH)), importance=importance, **options)
    assert (bias < 1e-20) == PolicyGradient(**{"n": 2} | options, importance=importance).corrects
    assert bias < 1e-20 or bias > 1e-6


def test_weights_do_nothing_on_policy(problem):
    """Those that neither truncate nor mask a weight of 1."""
    plain = flatten(PolicyGradient().gradient(problem, generator("cpu", 0)).grad)
    for importance in ("token", "sequence", "prefix", "geometric"):
        weighted = PolicyGradient(importance=importance, truncate=1.5, mask_below=0.5, mask_above=2.0)
        found = flatten(weighted.gradient(problem, generator("cpu", 0)).grad)
        torch.testing.assert_close(found, plain, rtol=0, atol=1e-12)


@pytest.mark.parametrize("importance, expected", [("none", [1, 1, 1]), ("token", [2, 0.5, 1]), ("sequence", [1, 1, 1]),
                                                  ("prefix", [2, 1, 1]), ("geometric", [1, 1, 1])])  # fmt: skip
def test_weights_are_ratios_of_probabilities(importance, expected):
    log_ratio = torch.tensor([2.0, 0.5, 1.0]).log().view(1, 1, 3)
    alive = torch.tensor([True, True, False]).view(1, 1, 3)
    found = PolicyGradient(importance=importance).weights(log_ratio, alive)
    assert found.flatten().tolist() == pytest.approx(expected)


def test_weights_are_truncated_and_masked():
    log_ratio = torch.tensor([0.2, 1.0, 3.0]).log().view(1, 1, 3)
    alive = torch.ones(1, 1, 3, dtype=torch.bool)

    def weights(**options):
        return PolicyGradient(importance="token", **options).weights(log_ratio, alive).flatten().tolist()

    assert weights(truncate=2.0) == pytest.approx([0.2, 1, 2])
    assert weights(mask_above=2.0) == pytest.approx([0.2, 1, 0])
    assert weights(mask_below=0.5, mask_above=2.0) == pytest.approx([0, 1, 0])
    assert weights(mask_below=0.5, truncate=2.0) == pytest.approx([0, 1, 2])


def test_tokens_are_averaged_as_named():
    tokens = torch.tensor([[[6.0, 0, 0], [1, 2, 3]], [[4, 8, 0], [3, 3, 3]]])  # (n, B, T)
    lengths = torch.tensor([[1, 3], [2, 3]])
    alive = torch.arange(3) < lengths.unsqueeze(-1)

    def found(**options):
        return float(PolicyGradient(**options).averaged(tokens, alive))

    assert found(aggregate="sum") == pytest.approx((6 + 6 + 12 + 9) / 4)
    assert found(aggregate="constant") == pytest.approx((6 + 6 + 12 + 9) / 4 / 3)
    assert found(aggregate="sequence-mean") == pytest.approx((6 + 2 + 6 + 3) / 4)
    assert found(aggregate="token-mean") == pytest.approx(33 / 9)
    assert found(aggregate="micro-mean", micro=2) == pytest.approx((18 / 3 + 15 / 6) / 2)  # of each context


@pytest.mark.parametrize("kl, expected", [("k1", math.log(2)), ("k2", math.log(2) ** 2 / 2), ("k3", 0.5 - 1 + math.log(2)),
                                          ("k3-corrected", 3 * (0.5 - 1 + math.log(2)))])  # fmt: skip
def test_estimates_of_the_divergence(kl, expected):
    p, reference, mu = (torch.tensor([[[value]]]).log() for value in (0.6, 0.3, 0.2))
    found = PolicyGradient(kl=kl, kl_in="loss").estimated(p, reference, mu)
    assert float(found) == pytest.approx(expected, rel=1e-6)


def test_each_estimate_of_the_divergence_has_its_gradient():
    """At one decision, by the sum over its outcomes: k2, and k3 with the ratio, have the divergence's own gradient, k1 none, and
    k3 that of the divergence the other way round."""
    logits = torch.tensor([0.3, -0.2, 0.9], dtype=torch.float64, requires_grad=True)
    log_q = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64).log()
    log_p = logits.log_softmax(-1)
    p = log_p.exp().detach()

    def gradient(value):
        return torch.autograd.grad(value, logits, retain_graph=True)[0]

    forwards, backwards = (
        gradient((log_p.exp() * (log_p - log_q)).sum()),
        gradient((log_q.exp() * (log_q - log_p)).sum()),
    )
    truths = {"k1": torch.zeros(3, dtype=torch.float64), "k2": forwards, "k3": backwards, "k3-corrected": forwards}
    for kl, truth in truths.items():
        found = gradient((p * PolicyGradient(kl=kl, kl_in="loss").estimated(log_p, log_q, log_p.detach())).sum())
        torch.testing.assert_close(found, truth, rtol=0, atol=1e-12, msg=kl)


def test_a_group_of_equal_rewards_has_no_advantage():
    reward = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    assert PolicyGradient(scale="group").scaled(reward).tolist()[0][0] == 0.0
    assert PolicyGradient(scale="batch").scaled(torch.ones(2, 2)).tolist() == [[0, 0], [0, 0]]


@pytest.mark.parametrize("options, what", [({"n": 1}, "n=2 or more"), ({"n": 1, "baseline": "none", "scale": "group"}, "n=2 or more"),
                                           ({"kl": "k3-corrected"}, "kl_in=loss")])  # fmt: skip
def test_options_that_say_nothing_together_are_refused(options, what):
    with pytest.raises(ValueError, match=what):
        PolicyGradient(**options)
