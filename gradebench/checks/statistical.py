"""Statistical checks: an estimator that is declared unbiased is, and relaxed rollouts follow the policy."""

import itertools
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gradebench.checks.hotelling import Draw, MeanTest, mean_test
from gradebench.checks.subject import BETA, SEQUENCES, Failed, Finding, Skipped, Subject
from gradebench.checks.watched import Notes, Watched
from gradebench.core.problem import Behaviour, Problem
from gradebench.core.sampler import Sampler
from gradebench.core.sampling import generator
from gradebench.core.shown import counted
from gradebench.measurement.moments import flatten
from gradebench.problems.factorised import FactorisedProblem

FALSE_ALARM = 1e-3  # of all statistical checks of one run together
ALPHA = FALSE_ALARM / 8  # of each; there are at most eight
MARGIN = 0.15  # of the gradient's norm: a bias that must be detected
EQUIVALENCE = 0.25  # of the gradient's norm: a bias that the intervals must exclude
OFFSET = 0.25  # added to a reward between 0 and 1
MISMATCH = Sampler(temperature=0.8, noise=0.2)  # of samples that aren't the policy's
MODES: tuple[Literal["recorded", "parallel"], ...] = (
    "recorded",
    "parallel",
)  # ways in which training may differentiate rollouts
SAME = 1e-6  # of the gradient's norm: a difference by rounding
RESIDUAL = 0.2  # the scale that MARGIN is relative to for tokens: a probability


def shift(subject: Subject) -> str:
    """A constant added to the reward doesn't change the mean gradient."""
    plain, moved = (Watched(subject.sequences(SEQUENCES // 4), 1.0, offset) for offset in (0.0, OFFSET))
    estimator = subject.ready(plain)

    def difference(number: int) -> NDArray[np.float64]:
        """The gradient with the constant minus that without, from the same random numbers."""
        a, b = (subject.gradient(estimator, problem, subject.rng("shift", number)) for problem in (moved, plain))
        return (a - b).numpy()

    draw = _numbered(difference)
    scale = float(np.linalg.norm(subject.gradient(estimator, plain, subject.rng("shift")).numpy()))
    if np.abs(draw(2)).max() < 1e-9 * scale:
        return "a constant added to the reward doesn't change the gradient"
    found = mean_test(draw, np.zeros(sum(p.numel() for p in plain.params)), scale, ALPHA, MARGIN)
    if not subject.unbiased and found.size < EQUIVALENCE:
        return (
            f"a constant added to the reward changes the mean gradient by {found.size:.0%}, less than {EQUIVALENCE:.0%}"
        )
    _judge(
        found, "a constant added to the reward changes the mean gradient", "weights of grad log p whose mean isn't zero"
    )
    return f"a constant added to the reward adds noise but no bias (p = {found.p_value:.2g}, {counted(found.draws, 'draw')})"


def _numbered(vector: Callable[[int], NDArray[np.float64]]) -> Draw:
    """New vectors from a function of the draw's number, which never repeats."""
    numbers = itertools.count()
    return lambda count: np.stack([vector(next(numbers)) for _ in range(count)])


# --- unbiasedness -----------------------------------------------------------------------------------------------


def _truth(problem: Problem) -> tuple[float, NDArray[np.float64]]:
    """Norm of the exact gradient, and the gradient (d,)."""
    gradient = flatten(problem.exact_gradient()).numpy()
    return float(np.linalg.norm(gradient)), gradient


def _compared(subject: Subject, problem: Any, truth: Problem, label: str, **options: Any) -> MeanTest:
    """Test the mean of new gradients on `problem` against the exact gradient of `truth`, which has the same objective.

    In the cases of `unbiased_if`, gradients are first divided by the estimator's `expected_scale`.
    """
    estimator = subject.ready(truth, **options)
    size, gradient = _truth(truth)
    scale = 1.0 if subject.unbiased else estimator.expected_scale(problem)

    def estimate(number: int) -> NDArray[np.float64]:
        return subject.gradient(estimator, problem, subject.rng(label, number)).numpy() / scale

    return mean_test(_numbered(estimate), gradient, size, ALPHA, MARGIN)


def _judge(found: MeanTest, failure: str, advice: str) -> None:
    """Raises Failed if the test rejects, or if a large bias remains possible."""
    if found.p_value < ALPHA:
        share = f"{found.share:+.0%} ± {found.error:.0%} along the gradient"
        raise Failed(f"{failure}: {share} (p = {found.p_value:.1g}, {counted(found.draws, 'draw')})", advice)
    if found.largest > EQUIVALENCE:
        raise Failed(
            f"too noisy to tell: {counted(found.draws, 'draw')} leave a bias of up to {found.largest:.0%} possible",
            f"its variance; a bias of {MARGIN:.0%} along the tested directions is detected with probability {found.power:.2f} only",
        )


def _kept(found: MeanTest) -> str:
    return (
        f"bias {found.share:+.1%} ± {found.error:.1%} along the gradient, at most {found.largest:.0%} along any tested direction "
        f"(p = {found.p_value:.2g}; {counted(found.draws, 'draw')}; a bias of {MARGIN:.0%} along them is detected with probability {found.power:.3f})"
    )


_BIAS_ADVICE = "a baseline that depends on its sample, a wrong factor, a detach too many or too few, noise used twice, or grad f left out"


def unbiased(subject: Subject) -> list[Finding]:
    name = "unbiased"
    settings = {"without KL": 0.0} if "fixed_reward" in subject.needs else {"with KL": BETA, "without KL": 0.0}
    if not subject.unbiased:
        return _printed_bias(subject)
    findings = []
    for label, beta in settings.items():
        problem = subject.sequences(SEQUENCES // 4 // subject.n or 1, beta)
        found = _compared(subject, problem, subject.sequences(beta=beta), label)
        _judge(found, f"declared unbiased, but biased on sequences {label}", _BIAS_ADVICE)
        findings.append(Finding(name, "pass", f"on sequences {label}: {_kept(found)}"))
    return findings


def corrected(subject: Subject) -> str:
    """Unbiased where samples come from another distribution: sharper than the policy, with errors in its logits."""
    if not subject.corrects:
        raise Skipped("isn't declared to correct for samples of another distribution than the policy")
    problem = subject.sequences(SEQUENCES // 4 // subject.n or 1).sampled_by(Behaviour(MISMATCH))
    found = _compared(subject, problem, subject.sequences(), "off the policy")
    advice = "importance weights p / mu of whole sequences, detached, from problem.behaviour_log_prob, on every term"
    _judge(found, "declared to correct for samples of another distribution, but biased on them", advice)
    return f"on sequences that another distribution drew: {_kept(found)}"


def _printed_bias(subject: Subject) -> list[Finding]:
    """The measured bias of an estimator that isn't declared unbiased, in the least noisy setting."""
    problem = subject.sequences(SEQUENCES // 4 // subject.n or 1, 0.0)
    estimator = subject.ready(problem)
    size, gradient = _truth(subject.sequences(beta=0.0))
    draws = np.stack([subject.gradient(estimator, problem, subject.rng("bias", i)).numpy() for i in range(64)])
    bias = draws.mean(0) - gradient
    squared = (bias @ bias - draws.var(0, ddof=1).sum() / len(draws)) / size**2
    cosine = draws.mean(0) @ gradient / size / np.linalg.norm(draws.mean(0))
    detail = f"not declared unbiased; on sequences without KL, relative bias² = {squared:.2f}, cosine = {cosine:.2f}"
    return [Finding("unbiased", "info", detail)]


def conditions(subject: Subject) -> list[Finding]:
    if not subject.unbiased_if:
        raise Skipped("declares no special case in which it is unbiased")
    findings = []
    for condition, options in subject.unbiased_if.items():
        if condition not in _CONDITIONS:
            raise Failed(f"unbiased_if has the unknown case {condition!r}", f"the cases are {', '.join(_CONDITIONS)}")
        found = _CONDITIONS[condition](subject, dict(options))
        _judge(found, f"biased in the case {condition!r}, in which it is declared unbiased", _BIAS_ADVICE)
        shown = ", ".join(f"{k}={v}" for k, v in options.items())
        findings.append(Finding("unbiased if", "pass", f"{condition} ({shown}): {_kept(found)}"))
    return findings


def _on_policy(subject: Subject, options: dict[str, Any]) -> MeanTest:
    problem = subject.sequences(SEQUENCES // 4 // subject.n or 1)
    return _compared(subject, problem, subject.sequences(), "on policy", **options)


def _off_policy(subject: Subject, options: dict[str, Any]) -> MeanTest:
    """The second call on a batch, after the parameters have changed since it was sampled."""
    one = subject.sequences(beta=0.0, horizon=1)
    problem = subject.sequences(SEQUENCES // 4, 0.0, 1)
    rng = subject.rng("move")
    delta = [0.1 * torch.randn(p.shape, generator=rng, dtype=p.dtype) for p in problem.params]
    estimator = subject.ready(one, **options)
    scale = estimator.expected_scale(problem)
    with one.shifted(delta):
        size, gradient = _truth(one)

    def second(number: int) -> NDArray[np.float64]:
        estimator.reset()
        rng = subject.rng("off policy", number)
        subject.estimate(estimator, problem, rng)
        with problem.shifted(delta):
            return flatten(subject.estimate(estimator, problem, rng).grad).numpy() / scale

    return mean_test(_numbered(second), gradient, size, ALPHA, MARGIN)


def _independent(subject: Subject, options: dict[str, Any], quadratic: bool) -> MeanTest:
    """Three independent decisions under a linear or a quadratic reward."""
    categories = 2 if "binary" in subject.needs else 3
    rng = generator("cpu", "independent")
    table = torch.randn(3, categories, generator=rng, dtype=torch.float64).requires_grad_()
    weights = torch.randn(3 * categories, generator=rng, dtype=torch.float64)
    pairs = torch.randn(3 * categories, 3 * categories, generator=rng, dtype=torch.float64) * float(quadratic)

    def reward(y: Tensor) -> Tensor:
        flat = y.flatten(-2)
        return flat @ weights + ((flat @ pairs) * flat).sum(-1)

    problem = FactorisedProblem(table, lambda table: table, reward, SEQUENCES // subject.n or 1)
    return _compared(subject, problem, FactorisedProblem(table, lambda table: table, reward), "independent", **options)


_CONDITIONS: dict[str, Callable[[Subject, dict[str, Any]], MeanTest]] = {
    "on_policy": _on_policy,
    "off_policy": _off_policy,
    "linear": lambda subject, options: _independent(subject, options, False),
    "quadratic": lambda subject, options: _independent(subject, options, True),
}


# --- relaxed paths ----------------------------------------------------------------------------------------------


def pathwise(subject: Subject) -> str:
    if not subject.pathwise:
        raise Skipped("isn't declared pathwise")
    problem = Watched(subject.sequences(copies=32), plain=True)
    estimator = subject.ready(problem)
    found = subject.gradient(estimator, problem, subject.rng("path"))
    _require_followed(problem.notes, found)
    for mode in MODES:
        trained = subject.sequences(copies=32)
        trained.straight_through, trained.residual = mode, 0.0
        gap = _gap(subject.gradient(estimator, trained, subject.rng("path")), found)
        if not gap <= SAME:
            raise Failed(
                f"with {mode} rollouts, as in training, the gradient differs by {gap:.1%} of its norm",
                "the arguments of `rollout`: `relax` may draw from `rng` only, `hard` tokens must be one-hots, and nothing else "
                "may change between calls of relax",
            )
    return "the gradient of the reward along the estimator's own rollout, in every mode of differentiation"


def _require_followed(notes: Notes, found: Tensor) -> None:
    """Raises Failed unless the gradient (d,) is that of the reward along the recorded rollout, by autograd."""
    if notes.rolled is None:
        raise Failed("no rollout was made", "call problem.rollout(relax, n)")
    if notes.detached:
        raise Failed("a token has no gradient with respect to its logits", "a detach inside `relax`")
    total = notes.rolled.detach().sum(-1)
    if not torch.allclose(total, torch.ones_like(total), atol=1e-4) or float(notes.rolled.detach().min()) < -1e-4:
        raise Failed("tokens aren't on the simplex", "relaxed one-hots are nonnegative and sum to 1")
    if notes.expected is None:
        raise Failed(
            "the reward wasn't computed from the rollout's own tokens",
            "call soft_reward(y) with the y that rollout returned",
        )
    expected = flatten(notes.expected)
    gap = _gap(found, expected)
    if not gap <= SAME:
        raise Failed(
            f"the gradient differs from that along the rollout by {gap:.1%} of its norm",
            "tokens that are detached before they are fed back, or a part of the gradient left out",
        )


def _gap(found: Tensor, expected: Tensor) -> float:
    """Distance of two gradients (d,), relative to the norm of the second."""
    return float((found - expected).norm() / expected.norm())


def law(subject: Subject) -> str:
    """The residuals one_hot(token) - softmax(logits), and their products between positions, have mean zero."""
    if not subject.pathwise:
        raise Skipped("isn't declared pathwise")
    problem = Watched(subject.sequences(copies=SEQUENCES // 4))
    estimator = subject.ready(problem)

    def residuals(number: int) -> NDArray[np.float64]:
        subject.gradient(estimator, problem, subject.rng("law", number))
        parts = []
        for logits, tokens in problem.notes.steps:
            chosen = torch.nn.functional.one_hot(tokens.argmax(-1), tokens.shape[-1])
            parts.append((chosen - logits.softmax(-1)).flatten(0, 1))  # (n B, V)
        products = [(a.unsqueeze(-1) * b.unsqueeze(-2)).flatten(1) for i, a in enumerate(parts) for b in parts[i + 1 :]]
        return torch.cat([*parts, *products], 1).mean(0).numpy()

    found = mean_test(_numbered(residuals), np.zeros_like(residuals(0)), RESIDUAL, ALPHA, MARGIN)
    if found.p_value < ALPHA:
        raise Failed(
            f"tokens aren't distributed as the policy says, or aren't independent between positions (p = {found.p_value:.1g})",
            "add independent Gumbel noise to the logits of every position and sample",
        )
    return f"tokens are distributed as the policy says, independently (p = {found.p_value:.2g}, {counted(found.draws, 'draw')})"
