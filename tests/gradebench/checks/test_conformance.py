"""Every check passes a right estimator and fails one that breaks the rule it is for, naming what to look at.

Long because one file tests one module.
"""

import functools
import json
import random

import numpy as np
import pytest
import torch

from gradebench import Estimate, Estimator, generator, gumbel, harden, score, straight_through
from gradebench.checks import statistical
from gradebench.checks.conformance import CHECKS, FALSE_ALARM, check, report
from gradebench.checks.watched import Watched
from gradebench.core.global_state import QUICK
from gradebench.core.problem import RolloutHints


class Right(Estimator):
    """REINFORCE without a baseline."""

    unbiased = True

    def gradient(self, problem, rng):
        z = problem.sample(self.n, rng)
        reward = problem.reward(z)
        return Estimate(problem.grad(self.objective(problem, z, reward, rng)))

    def objective(self, problem, z, reward, rng):
        return score(problem, z, reward, reward)


class Quick(Right):
    """Most of the leave-one-out mean is taken off, so that few draws decide; not all of it, so that a constant in the
    reward is noise that has to be judged, and no check ends early."""

    n = 8

    def objective(self, problem, z, reward, rng):
        others = (reward.sum(0) - reward).detach() / (self.n - 1)
        return score(problem, z, reward, reward - 0.9 * others)


class RightPath(Estimator):
    needs = frozenset({"soft_reward"})
    pathwise = True

    def gradient(self, problem, rng):
        y = problem.rollout(lambda logits: self.relax(logits, rng), 1)
        return Estimate(problem.grad(problem.soft_reward(y).mean()))

    def relax(self, logits, rng):
        soft = (logits + gumbel(logits, rng)).softmax(-1)
        return straight_through(harden(soft), soft)


def failures(make, *only):
    return {finding.check: finding for finding in check(make, only=only) if finding.status == "fail"}


def test_a_right_estimator_passes_every_check():
    findings = check(Quick)
    assert {finding.check for finding in findings} == set(CHECKS)
    assert {finding.status for finding in findings} == {"pass", "skip"}


# --- the shape of the answer


class TooFew(Right):
    def gradient(self, problem, rng):
        return Estimate(super().gradient(problem, rng).grad[1:])


class KeepsGraph(Right):
    def gradient(self, problem, rng):
        z = problem.sample(1, rng)
        return Estimate(problem.grad(problem.log_prob(z).mean(), create_graph=True))


class SinglePrecision(Right):
    def gradient(self, problem, rng):
        return Estimate([g.float() for g in super().gradient(problem, rng).grad])


class NoEstimate(Right):
    def gradient(self, problem, rng):
        return list(super().gradient(problem, rng).grad)


class UnknownNeed(Right):
    needs = frozenset({"telepathy"})


class Raises(Right):
    def gradient(self, problem, rng):
        raise ArithmeticError("the third law\nof the estimator")


@pytest.mark.parametrize("make", [TooFew, KeepsGraph, SinglePrecision, NoEstimate, UnknownNeed, Raises])
def test_an_answer_of_the_wrong_shape_fails_at_once(make):
    findings = check(make)
    assert [finding.status for finding in findings] == ["fail"]
    assert findings[0].advice and "\n" not in findings[0].detail


def test_a_constructor_that_raises_is_a_finding():
    def make():
        raise RuntimeError("no such table")

    (finding,) = check(make)
    assert finding.status == "fail" and "no such table" in finding.detail


def test_what_an_estimator_raises_is_reported_with_its_place():
    (finding,) = check(Raises)
    assert finding.detail == "ArithmeticError: the third law of the estimator"
    assert finding.advice.startswith("test_conformance.py, line ")


# --- random numbers and side effects


class GlobalTorch(Right):
    def objective(self, problem, z, reward, rng):
        return super().objective(problem, z, reward, rng) * torch.rand(())


class GlobalNumpy(Right):
    def objective(self, problem, z, reward, rng):
        return super().objective(problem, z, reward, rng) * np.random.rand()  # noqa: NPY002


class GlobalPython(Right):
    def objective(self, problem, z, reward, rng):
        return super().objective(problem, z, reward, rng) * random.random()


@pytest.mark.parametrize("make", [GlobalTorch, GlobalNumpy, GlobalPython])
def test_hidden_randomness_is_caught(make):
    assert set(failures(make, "no hidden randomness", "deterministic given the generator")) == {
        "no hidden randomness",
        "deterministic given the generator",
    }


class KeepsItsNoise(Right):
    def gradient(self, problem, rng):
        if not hasattr(self, "z"):
            self.z = problem.sample(1, rng)
        reward = problem.reward(self.z)
        return Estimate(problem.grad(score(problem, self.z, reward, reward)))


class NeverResets(Right):
    """Two calls share a batch, and reset() forgets to drop it."""

    period = 2
    z = None

    def gradient(self, problem, rng):
        fresh = self.z is None
        z = problem.sample(1, rng) if fresh else self.z
        self.z = z if fresh else None
        reward = problem.reward(z)
        return Estimate(problem.grad(score(problem, z, reward, reward)))


@pytest.mark.parametrize("make", [KeepsItsNoise, NeverResets])
def test_state_that_outlives_reset_is_caught(make):
    assert failures(make, "deterministic given the generator")


class Writes(Right):
    def objective(self, problem, z, reward, rng):
        with torch.no_grad():
            problem.params[0].add_(1e-3)
        return super().objective(problem, z, reward, rng)


class Backward(Right):
    def objective(self, problem, z, reward, rng):
        super().objective(problem, z, reward, rng).backward(retain_graph=True)
        return super().objective(problem, z, reward, rng)


class SwitchesMode(Right):
    def gradient(self, problem, rng):
        problem.policy.train(not problem.policy.training)
        return super().gradient(problem, rng)


@pytest.mark.parametrize("make", [Writes, Backward, SwitchesMode])
def test_side_effects_on_the_policy_are_caught(make):
    assert failures(make, "leaves the policy alone")


# Settings of the whole process, each with another value than a test's process has.
OTHERWISE = {
    "torch.set_grad_enabled": False,
    "torch.set_default_dtype": torch.float64,
    "torch.set_num_threads": 3,
    "torch.use_deterministic_algorithms": True,
    "torch.autograd.set_detect_anomaly": True,
}


STATISTICAL = ("shift", "unbiased if", "unbiased")  # that take long; "law" and "pathwise" don't apply


@pytest.mark.parametrize(
    "settings", [QUICK, *([one] for one in QUICK)], ids=lambda settings: "+".join(one.name for one in settings)
)
def test_a_changed_setting_of_the_process_fails_its_check_and_no_other(settings):
    """All of them together in every check; each alone in all but the statistical ones."""

    class Switches(Quick):
        def gradient(self, problem, rng):
            estimate = super().gradient(problem, rng)
            for setting in settings:
                setting.write(OTHERWISE[setting.name])
            return estimate

    before = [one.read() for one in QUICK]
    only = () if len(settings) > 1 else [name for name in CHECKS if name not in STATISTICAL]
    found = {finding.check: finding for finding in check(Switches, only=only) if finding.status == "fail"}
    assert list(found) == ["leaves the policy alone"]
    assert all(setting.name in found["leaves the policy alone"].detail for setting in settings)
    assert [one.read() for one in QUICK] == before


class NeverFrozen(Right):
    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def objective(self, problem, z, reward, rng):
        self.seen += 1
        return super().objective(problem, z, reward, rng)


class OtherInTraining(Right):
    def objective(self, problem, z, reward, rng):
        return super().objective(problem, z, reward, rng) * (2 if self.training else 1)


@pytest.mark.parametrize("make", [NeverFrozen, OtherInTraining])
def test_state_that_eval_does_not_freeze_is_caught(make):
    assert failures(make, "frozen by eval()")


# --- numbers


class Overflows(Right):
    """p / p: 0 / 0 where a probability underflows."""

    def objective(self, problem, z, reward, rng):
        p = problem.logits(z).softmax(-1)
        return super().objective(problem, z, reward, rng) + 0 * (p.float() ** 40).log().mean()


def test_a_gradient_that_is_not_finite_at_extreme_logits_is_caught():
    assert "finite" in failures(Overflows, "finite at extreme logits")["finite at extreme logits"].detail


class HalfLogarithm(Right):
    def objective(self, problem, z, reward, rng):
        tiny = problem.logits(z).softmax(-1).half() * 1e-6
        return super().objective(problem, z, reward, rng) + 0 * (tiny * 1e-3).log().mean()


def test_a_logarithm_in_half_precision_is_caught():
    assert failures(HalfLogarithm, "finite under autocast")


# --- declarations and the ledger


class UndeclaredPath(RightPath):
    needs = frozenset()


class IdleNeed(Right):
    needs = frozenset({"soft_reward"})


@pytest.mark.parametrize("make", [UndeclaredPath, IdleNeed])
def test_needs_that_are_not_true_are_caught(make):
    assert failures(make, "needs", next(iter(CHECKS)))


class PeeksPastTheLedger(Right):
    def objective(self, problem, z, reward, rng):
        free = problem.policy(problem.policy.embed(problem.prompts))[0].detach().mean()
        problem.ledger.reward_calls -= 1
        return super().objective(problem, z, reward, rng) + 0 * free


class ReadsTwice(Right):
    """Half of the contexts, twice."""

    def gradient(self, problem, rng):
        half = problem.select(torch.arange(problem.contexts // 2).repeat(3))
        return super().gradient(half, rng)


class NoReward(Right):
    def gradient(self, problem, rng):
        return Estimate(problem.grad(problem.log_prob(problem.sample(1, rng)).sum(-1).mean()))


@pytest.mark.parametrize("make", [PeeksPastTheLedger, NoReward])
def test_a_ledger_that_does_not_add_up_is_caught(make):
    assert failures(make, "ledger")


class Clips(Right):
    def objective(self, problem, z, reward, rng):
        return super().objective(problem, z, reward.clamp(max=0.9), rng)


def test_rewards_that_are_clipped_are_caught():
    assert failures(Clips, "scale")


class Uncentred(Right):
    """Rewards are weighted by the token that was drawn."""

    def objective(self, problem, z, reward, rng):
        return score(problem, z, reward, reward * (z[..., 0] == 0))


def test_weights_that_a_constant_moves_are_caught():
    assert failures(Uncentred, "shift")


# --- promises


class Halved(Right):
    def objective(self, problem, z, reward, rng):
        return 0.5 * super().objective(problem, z, reward, rng)


class Modest(Halved):
    """The same, and honest about it."""

    unbiased = False


def test_a_false_claim_fails_and_a_modest_one_has_its_bias_printed():
    failure = failures(Halved, "unbiased")["unbiased"]
    assert "-50%" in failure.detail or "-4" in failure.detail or "-5" in failure.detail
    (modest,) = check(Modest, only=["unbiased"])
    assert modest.status == "info"
    share = float(modest.detail.partition("bias² = ")[2].partition(",")[0])
    assert 0.15 < share < 0.35  # a half, squared; the noise of 64 draws is below 0.05


class FalseCondition(Halved):
    unbiased = False
    unbiased_if = {"linear": {}}  # noqa: RUF012


class NoSuchCondition(Right):
    unbiased_if = {"on Sundays": {}}  # noqa: RUF012


def test_false_and_unknown_conditions_are_caught():
    assert failures(FalseCondition, "unbiased if")
    assert "linear" in failures(NoSuchCondition, "unbiased if")["unbiased if"].advice


class OffTheSimplex(RightPath):
    def relax(self, logits, rng):
        return 2 * super().relax(logits, rng)


class NoRollout(Right):
    pathwise = True


@pytest.mark.parametrize("make", [OffTheSimplex, NoRollout])
def test_a_broken_path_is_caught(make):
    assert failures(make, "pathwise")


class SaysHard(RightPath):
    """Soft tokens that are called one-hots."""

    relax = staticmethod(lambda logits, rng: (logits + gumbel(logits, rng)).softmax(-1))

    def gradient(self, problem, rng):
        y = problem.rollout(lambda logits: self.relax(logits, rng), 1, rng=rng, hard=True)
        return Estimate(problem.grad(problem.soft_reward(y).mean()))


class OwnNoise(RightPath):
    """Noise from another generator than the one that the rollout is told of."""

    def gradient(self, problem, rng):
        own = generator("cpu", int(torch.randint(2**62, (), generator=rng)))
        y = problem.rollout(lambda logits: self.relax(logits, own), 1, rng=rng, hard=True)
        return Estimate(problem.grad(problem.soft_reward(y).mean()))


@pytest.mark.parametrize(("make", "mode"), [(SaysHard, "recorded"), (OwnNoise, "parallel")])
def test_a_path_that_is_wrong_as_training_differentiates_it_alone_is_caught(make, mode, monkeypatch):
    assert f"with {mode} rollouts" in failures(make, "pathwise")["pathwise"].detail
    monkeypatch.setattr(statistical, "MODES", ())
    assert not failures(make, "pathwise")  # plain rollouts show nothing


def test_a_watched_rollout_is_told_what_the_estimator_tells(tiny_problem):
    """Each check that counts or draws through it sees the rollout mode that training uses."""
    problem, seen = tiny_problem(), []
    problem.relaxed_draws = lambda relax, n, hints: (
        seen.append(hints) or type(problem).relaxed_draws(problem, relax, n, hints)
    )
    rng = generator("cpu", 0)
    relax = functools.partial(RightPath().relax, rng=rng)
    for plain in (False, True):
        Watched(problem, plain=plain).rollout(relax, 2, together=True, rng=rng, hard=True)
    assert seen == [RolloutHints(True, rng, True), RolloutHints()]


def test_a_right_path_passes():
    assert not failures(RightPath)


# --- the command


def test_report_is_plain_data_and_fails_where_a_finding_does(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from gradebench import Estimate, Estimator, score\n\n\n"
        "class Mine(Estimator):\n"
        "    unbiased = True\n"
        "    n = 8\n\n"
        "    def __init__(self, factor: float = 1.0):\n"
        "        super().__init__()\n"
        "        self.factor = factor\n\n"
        "    def gradient(self, problem, rng):\n"
        "        z = problem.sample(self.n, rng)\n"
        "        reward = problem.reward(z)\n"
        "        others = (reward.sum(0) - reward).detach() / 7  # fewer draws than without\n"
        "        return Estimate(problem.grad(self.factor * score(problem, z, reward, reward - others)))\n"
    )
    right = report(f"{file}:Mine", 0)
    wrong = report(f"{file}:Mine:factor=0.5", 0)
    assert (right["passed"], wrong["passed"]) == (True, False)
    assert json.loads(json.dumps(wrong))["false_alarm_rate"] == FALSE_ALARM
    assert [f["check"] for f in wrong["findings"] if f["status"] == "fail"] == ["unbiased"]


def test_command_exits_by_the_verdict(command, tmp_path):
    status, out, err = command("check", "exact", "--json")
    assert (status, err) == (0, "")
    assert json.loads(out)["passed"] is True
    status, out, _ = command("check", "nonsense")
    assert (status, out) == (2, "")
    bad = tmp_path / "bad.py"
    bad.write_text("from gradebench import Estimator\n\n\nclass Bad(Estimator):\n    pass\n")
    status, out, _ = command("check", f"{bad}:Bad")
    assert status == 1
    assert "NotImplementedError" in out and "FAIL" in out
