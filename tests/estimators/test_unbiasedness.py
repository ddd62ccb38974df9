"""Unbiased or not, on sequences small enough to enumerate: every claim is tested, and every wrong twin must fail.

V = 3, T = 3 (fewer positions hide a wrong detach or prefix), a reward that is neither additive nor quadratic, with and
without a penalty that depends on the parameters.

The test is Hotelling's T^2 on DRAWS estimates, each a mean over 256 sequences and so near normal, against the
enumerated gradient, along that gradient and DIRECTIONS - 1 random directions. A true claim fails with probability
ALPHA; the power is asserted beside each claim, from the covariance found, for a bias of BIAS along the gradient.
"""

from unittest import mock

import pytest
import torch
from scipy.stats import f as fisher
from scipy.stats import ncf

from gradebench import Estimate, score
from gradebench.estimators import rebar
from gradebench.estimators.ppo import Ppo
from gradebench.estimators.rebar import Rebar
from gradebench.estimators.relaxed import Grade, GradeSte
from gradebench.estimators.score_function import Reinforce, Rloo
from gradebench.probes import one_estimate
from gradebench.sampling import exponential, generator

ALPHA = 1e-3
DRAWS = 100
DIRECTIONS = 16
SEQUENCES = 256  # a draw
BIAS = 0.15  # of the gradient's norm, what the power is stated for


class Hotelling:
    """T^2 of the mean of vectors (draws, d) against `truth`, on the subspace that their covariance spans."""

    def __init__(self, vectors, truth):
        rng = generator("cpu", "directions")
        others = torch.randn(len(truth), min(DIRECTIONS, len(truth)) - 1, generator=rng, dtype=truth.dtype)
        basis = torch.linalg.qr(torch.cat([truth[:, None], others], 1)).Q
        vectors, self.truth, self.draws = vectors @ basis, truth @ basis, len(vectors)
        self.bias = vectors.mean(0) - self.truth
        values, axes = torch.linalg.eigh(vectors.T.cov())
        spans = values > 1e-10 * values[-1]
        self.rank = int(spans.sum())
        self.whiten = axes[:, spans] / values[spans].sqrt()  # a generalised inverse of the covariance, as a square root
        self.rest = axes[:, ~spans]

    @property
    def scale(self):
        return (self.draws - self.rank) / (self.rank * (self.draws - 1))

    def p_value(self):
        if (self.rest.T @ self.bias).norm() > 1e-6 * self.truth.norm():
            return 0.0  # a deviation where there is no noise
        t_squared = self.draws * float((self.bias @ self.whiten).square().sum())
        return float(fisher.sf(self.scale * t_squared, self.rank, self.draws - self.rank))

    def power(self, share):
        """Probability that a bias of `share` of the gradient, along it, has a p-value below ALPHA."""
        freedom = self.rank, self.draws - self.rank
        shift = self.draws * float((share * self.truth @ self.whiten).square().sum())
        return float(ncf.sf(fisher.isf(ALPHA, *freedom), *freedom, shift))


def randomised(estimator, problem):
    """The estimator with its learned and running state away from its start, then frozen."""
    rng = generator("cpu", "state")
    estimator.init(problem)
    for _ in range(3):
        one_estimate(estimator, problem, rng)
    if isinstance(estimator, Ppo):
        with torch.no_grad():
            for p in estimator.value.parameters():
                p.copy_(torch.randn(p.shape, generator=rng, dtype=p.dtype) * 0.3)
    return estimator.eval()


@pytest.fixture
def hotelling(tiny_problem, exact_gradient):
    def test_of(make, beta):
        estimator = make()
        problem = tiny_problem(beta=beta, copies=SEQUENCES // 4 // estimator.n)
        rng = generator("cpu", type(estimator).__name__, beta, "draws")
        estimator = randomised(estimator, problem)
        vectors = torch.stack([one_estimate(estimator, problem, rng) for _ in range(DRAWS)])
        return Hotelling(vectors, exact_gradient(tiny_problem(beta=beta)))

    return test_of


def test_the_test_itself_keeps_its_level_and_has_its_power():
    """500 repeats on normals of rank 2 in 4: 25 +- 5 false alarms at level 0.05; 13 to 39 hold 0.997 of the law."""
    truth = torch.tensor([1.0, 1.0, 0.0, 0.0], dtype=torch.float64)
    alarms = hits = 0
    for i in range(500):
        noise = torch.randn(30, 2, generator=generator("cpu", i), dtype=torch.float64)
        noise = torch.cat([noise, noise.sum(1, keepdim=True), torch.zeros(30, 1)], 1)  # rank 2 of 4
        found = Hotelling(truth + noise, truth)
        assert found.rank == 2
        alarms += found.p_value() < 0.05
        hits += Hotelling(truth + truth.new_tensor([1, 1, 2, 0]) + noise, truth).p_value() < ALPHA
    assert 13 <= alarms <= 39
    assert hits > 490
    off_span = Hotelling(truth + truth.new_tensor([0, 0, 0, 1e-3]) + noise, truth)
    assert off_span.p_value() == 0.0


# --- the claims

UNBIASED = {
    "reinforce": Reinforce,
    "reinforce, no baseline": lambda: Reinforce("none"),
    "rloo": lambda: Rloo(2),
    "rebar": lambda: Rebar(0.6, 0.8),
    "ppo, one on-policy step": lambda: Ppo(1, 1, lam=1.0, whiten=False),
}
BIASED = {"grade": Grade, "grade-ste": GradeSte, "ppo": lambda: Ppo(1, 1)}


@pytest.mark.parametrize("beta", [0.0, 0.1])
@pytest.mark.parametrize("name", UNBIASED)
def test_estimator_is_unbiased_on_enumerable_sequences(hotelling, name, beta):
    found = hotelling(UNBIASED[name], beta)
    assert found.power(BIAS) > 0.99
    assert found.p_value() > ALPHA


@pytest.mark.parametrize("name", BIASED)
def test_bias_of_a_biased_estimator_is_detected(hotelling, name):
    assert hotelling(BIASED[name], 0.0).p_value() < ALPHA


# --- the wrong twins


class BlackBox:
    """A problem that hides how the reward depends on the parameters."""

    def __init__(self, problem):
        self._problem = problem
        self.offers = problem.offers | {"fixed_reward"}

    def __getattr__(self, name):
        return getattr(self._problem, name)

    def reward(self, z):
        return self._problem.reward(z).detach()

    def select(self, index):
        return BlackBox(self._problem.select(index))


class NoRewardGradient:
    """grad f is left out."""

    def gradient(self, problem, rng):
        return super().gradient(BlackBox(problem), rng)


class ReinforceNoRewardGradient(NoRewardGradient, Reinforce):
    pass


class ReinforceOwnBaseline(Reinforce):
    """The baseline is the mean of the draws it is subtracted from."""

    n = 2

    def gradient(self, problem, rng):
        z = problem.sample(self.n, rng)
        reward = problem.reward(z)
        return Estimate(problem.grad(score(problem, z, reward, reward - reward.mean(0))))


class ReinforcePeekingBaseline(Reinforce):
    """The baseline reads the last token of the sample it is subtracted from."""

    def gradient(self, problem, rng):
        z = problem.sample(self.n, rng)
        reward = problem.reward(z)
        return Estimate(problem.grad(score(problem, z, reward, reward - (z[..., -1] == 0) * 0.1)))


class RlooNoRewardGradient(NoRewardGradient, Rloo):
    pass


class RlooWrongFactor(Rloo):
    """Divided by k where k - 1 others were summed."""

    def gradient(self, problem, rng):
        z = problem.sample(self.n, rng)
        reward = problem.reward(z)
        others = (reward.sum(0) - reward) / (self.n - 1)
        return Estimate(problem.grad(score(problem, z, reward, (reward - others) * (self.n - 1) / self.n)))


class RlooReusedNoise(Rloo):
    """All samples of a context come from one noise, so the others are the sample itself."""

    def gradient(self, problem, rng):
        z = problem.sample(1, rng).expand(self.n, -1, -1)
        reward = problem.reward(z)
        others = (reward.sum(0) - reward) / (self.n - 1)
        return Estimate(problem.grad(score(problem, z, reward, reward - others)))


class PpoNoRewardGradient(NoRewardGradient, Ppo):
    pass


class PpoPeekingValue(Ppo):
    """The value of a position has read its token."""

    def rollout(self, problem, rng):
        features = problem.features
        ahead = mock.Mock(wraps=problem, contexts=problem.contexts)
        ahead.features = lambda z: features(z).roll(-1, 2)
        return super().rollout(ahead, rng)


class RebarNoRewardGradient(NoRewardGradient, Rebar):
    pass


class RebarRawLogits(Rebar):
    """Unnormalised logits in the conditional Gumbel: right argmax, wrong law."""

    def gradient(self, problem, rng):
        def raw(logits, index, noise):
            top = noise.gather(-1, index.unsqueeze(-1))
            others = -(noise / logits.exp() + top).log()
            return others.scatter(-1, index.unsqueeze(-1), -top.log())

        with mock.patch.object(rebar, "gumbel_given", raw):
            return super().gradient(problem, rng)


class RebarDetachedTied(Rebar):
    """G~ doesn't move with the parameters."""

    def soft_chain(self, problem, noise):
        return super().soft_chain(problem, noise.detach())


class RebarReusedNoise(Rebar):
    """One noise for all positions."""

    def gradient(self, problem, rng):
        def one_position(like, rng):
            return exponential(like[:, :, :1], rng).expand_as(like)

        with mock.patch.object(rebar, "exponential", one_position):
            return super().gradient(problem, rng)


class RebarHardPrefix(Rebar):
    """The relaxation runs along the sampled prefix in place of its own: fine for independent decisions only."""

    def gradient(self, problem, rng):
        state = rng.get_state()
        self.z = problem.sample(self.n, rng)
        rng.set_state(state)
        return super().gradient(problem, rng)

    def soft_chain(self, problem, noise):
        log_prob = problem.logits(self.z).log_softmax(-1)
        y = ((log_prob.repeat(2, 1, 1, 1) + noise) / self.log_tau.exp()).softmax(-1)
        return problem.soft_reward(y)


MUTANTS = {
    "reinforce without grad f": (ReinforceNoRewardGradient, 0.1),
    "reinforce, baseline from its own draws": (ReinforceOwnBaseline, 0.0),
    "reinforce, baseline that has seen the last token": (ReinforcePeekingBaseline, 0.0),
    "rloo without grad f": (lambda: RlooNoRewardGradient(2), 0.1),
    "rloo, factor 1 / k": (lambda: RlooWrongFactor(4), 0.0),
    "rloo, reused noise": (lambda: RlooReusedNoise(2), 0.0),
    "ppo without grad f": (lambda: PpoNoRewardGradient(1, 1, lam=1.0, whiten=False), 0.1),
    "ppo, value that has read the token": (lambda: PpoPeekingValue(1, 1, lam=1.0, whiten=False), 0.0),
    "ppo, whitened": (lambda: Ppo(1, 1, lam=1.0), 0.0),
    "ppo, lambda 0.5": (lambda: Ppo(1, 1, lam=0.5, whiten=False), 0.0),
    "rebar without grad f": (lambda: RebarNoRewardGradient(0.6, 0.8), 0.1),
    "rebar, raw logits": (lambda: RebarRawLogits(0.6, 0.8), 0.0),
    "rebar, detached noise": (lambda: RebarDetachedTied(0.6, 0.8), 0.0),
    "rebar, hard prefix": (lambda: RebarHardPrefix(0.6, 0.8), 0.0),
    "rebar, reused noise": (lambda: RebarReusedNoise(0.6, 0.8), 0.0),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_wrong_twin_is_detected(hotelling, name):
    make, beta = MUTANTS[name]
    assert hotelling(make, beta).p_value() < ALPHA
