"""Checks of promises, by statistics: no bias where none is declared, paths that follow the policy."""

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
from gradebench.core.problem import Problem
from gradebench.core.sampling import generator
from gradebench.measurement.moments import flatten
from gradebench.problems.factorised import FactorisedProblem

FALSE_ALARM = 1e-3  # of all statistical checks of one run together
ALPHA = FALSE_ALARM / 8  # of each: there are at most eight
MARGIN = 0.15  # of the gradient's norm: a bias that must be seen
EQUIVALENCE = 0.25  # of the gradient's norm: a bias that must be excluded
OFFSET = 0.25  # on a reward between 0 and 1
MODES: tuple[Literal["recorded", "parallel"], ...] = ("recorded", "parallel")  # of rollouts, as training may take them
SAME = 1e-6  # of the gradient's norm: two gradients that differ by rounding alone
RESIDUAL = 0.2  # a probability: the scale of which MARGIN is taken for tokens


def shift(subject: Subject) -> str:
    """A constant added to the reward leaves the mean gradient where it is."""
    plain, moved = (Watched(subject.sequences(SEQUENCES // 4), 1.0, offset) for offset in (0.0, OFFSET))
    estimator = subject.ready(plain)

    def difference(number: int) -> NDArray[np.float64]:
        """Gradient with the constant less gradient without, from the same random numbers."""
        a, b = (subject.gradient(estimator, problem, subject.rng("shift", number)) for problem in (moved, plain))
        return (a - b).numpy()

    draw = _numbered(difference)
    scale = float(np.linalg.norm(subject.gradient(estimator, plain, subject.rng("shift")).numpy()))
    if np.abs(draw(2)).max() < 1e-9 * scale:
        return "a constant in the reward changes nothing"
    found = mean_test(draw, np.zeros(sum(p.numel() for p in plain.params)), scale, ALPHA, MARGIN)
    if not subject.unbiased and found.size < EQUIVALENCE:
        return f"a constant in the reward moves the mean gradient by {found.size:.0%}: below {EQUIVALENCE:.0%}"
    _judge(found, "a constant in the reward moves the mean gradient", "weights of grad log p whose mean isn't zero")
    return f"a constant in the reward adds noise, no bias (p = {found.p_value:.2g}, {found.draws} draws)"


def _numbered(vector: Callable[[int], NDArray[np.float64]]) -> Draw:
    """Fresh vectors, from a function of the number of a draw."""
    numbers = itertools.count()
    return lambda count: np.stack([vector(next(numbers)) for _ in range(count)])


# --- unbiasedness -----------------------------------------------------------------------------------------------


def _truth(problem: Problem) -> tuple[float, NDArray[np.float64]]:
    """Norm of the exact gradient, and the gradient (d,)."""
    gradient = flatten(problem.exact_gradient()).numpy()
    return float(np.linalg.norm(gradient)), gradient


def _compared(subject: Subject, problem: Any, truth: Problem, label: str, **options: Any) -> MeanTest:
    """The mean of fresh gradients on `problem` against the exact one of `truth`, the same objective; in the cases of
    `unbiased_if`, after the length that the estimator expects is divided out."""
    estimator = subject.ready(truth, **options)
    size, gradient = _truth(truth)
    scale = 1.0 if subject.unbiased else estimator.expected_scale(problem)

    def estimate(number: int) -> NDArray[np.float64]:
        return subject.gradient(estimator, problem, subject.rng(label, number)).numpy() / scale

    return mean_test(_numbered(estimate), gradient, size, ALPHA, MARGIN)


def _judge(found: MeanTest, failure: str, advice: str) -> None:
    """Raises Failed where the test rejects, or could not have."""
    if found.p_value < ALPHA:
        share = f"{found.share:+.0%} ± {found.error:.0%} along the gradient"
        raise Failed(f"{failure}: {share} (p = {found.p_value:.1g}, {found.draws} draws)", advice)
    if found.largest > EQUIVALENCE:
        raise Failed(
            f"too noisy to tell: {found.draws} draws leave a bias of up to {found.largest:.0%} possible",
            f"its variance; a bias of {MARGIN:.0%} along those looked at would be seen with probability {found.power:.2f} only",
        )


def _kept(found: MeanTest) -> str:
    return (
        f"bias {found.share:+.1%} ± {found.error:.1%} along the gradient, at most {found.largest:.0%} along any of the directions looked at "
        f"(p = {found.p_value:.2g}; {found.draws} draws; a bias of {MARGIN:.0%} along them is seen with probability {found.power:.3f})"
    )


_BIAS_ADVICE = "a baseline that has seen its sample, a wrong factor, a detach too many or too few, noise used twice, grad f left out"


def unbiased(subject: Subject) -> list[Finding]:
    name = "unbiased"
    settings = {"without KL": 0.0} if "fixed_reward" in subject.needs else {"with KL": BETA, "without KL": 0.0}
    if not subject.unbiased:
        return _printed_bias(subject)
    findings = []
    for label, beta in settings.items():
        problem = subject.sequences(SEQUENCES // 4 // subject.n or 1, beta)
        found = _compared(subject, problem, subject.sequences(beta=beta), label)
        _judge(found, f"declares unbiased, and is biased on sequences {label}", _BIAS_ADVICE)
        findings.append(Finding(name, "pass", f"on sequences {label}: {_kept(found)}"))
    return findings


def _printed_bias(subject: Subject) -> list[Finding]:
    """What an estimator that promises nothing is off by, in the least noisy setting."""
    problem = subject.sequences(SEQUENCES // 4 // subject.n or 1, 0.0)
    estimator = subject.ready(problem)
    size, gradient = _truth(subject.sequences(beta=0.0))
    draws = np.stack([subject.gradient(estimator, problem, subject.rng("bias", i)).numpy() for i in range(64)])
    bias = draws.mean(0) - gradient
    squared = (bias @ bias - draws.var(0, ddof=1).sum() / len(draws)) / size**2
    cosine = draws.mean(0) @ gradient / size / np.linalg.norm(draws.mean(0))
    detail = (
        f"not declared; bias² = {squared:.2f} of the squared gradient, cosine {cosine:.2f}, on sequences without KL"
    )
    return [Finding("unbiased", "info", detail)]


def conditions(subject: Subject) -> list[Finding]:
    if not subject.unbiased_if:
        raise Skipped("declares no special case in which it is exact")
    findings = []
    for condition, options in subject.unbiased_if.items():
        if condition not in _CONDITIONS:
            raise Failed(f"unbiased_if has {condition!r}", f"conditions are {', '.join(_CONDITIONS)}")
        found = _CONDITIONS[condition](subject, dict(options))
        _judge(found, f"not exact in the case {condition} that it declares", _BIAS_ADVICE)
        shown = ", ".join(f"{k}={v}" for k, v in options.items())
        findings.append(Finding("unbiased if", "pass", f"{condition} ({shown}): {_kept(found)}"))
    return findings


def _on_policy(subject: Subject, options: dict[str, Any]) -> MeanTest:
    problem = subject.sequences(SEQUENCES // 4 // subject.n or 1)
    return _compared(subject, problem, subject.sequences(), "on policy", **options)


def _off_policy(subject: Subject, options: dict[str, Any]) -> MeanTest:
    """The gradient of a call after the first, the parameters having moved since the batch was drawn."""
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
        raise Skipped("does not promise to follow a path")
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
                f"differentiated the {mode} way, as in training, the gradient is another one by {gap:.1%} of its norm",
                "what `rollout` is told besides `relax`: `rng` is all that relax draws from, `hard` tokens are one-hots, "
                "and nothing else changes from one call of relax to the next",
            )
    return "the derivative of the reward along its own rollout, however that is differentiated"


def _require_followed(notes: Notes, found: Tensor) -> None:
    """Raises Failed unless the gradient found (d,) is the derivative of the reward along the rollout that was seen."""
    if notes.rolled is None:
        raise Failed("there was no rollout", "problem.rollout(relax, n)")
    if notes.detached:
        raise Failed("a token does not depend on its logits", "a detach inside `relax`")
    total = notes.rolled.detach().sum(-1)
    if not torch.allclose(total, torch.ones_like(total), atol=1e-4) or float(notes.rolled.detach().min()) < -1e-4:
        raise Failed("tokens are no points of the simplex", "relaxed one-hots are positive and sum to 1")
    if notes.expected is None:
        raise Failed(
            "the reward was not read off the rollout's own tokens", "soft_reward(y) of the y that was fed back"
        )
    expected = flatten(notes.expected)
    gap = _gap(found, expected)
    if not gap <= SAME:
        raise Failed(
            f"the gradient is off the derivative along the rollout by {gap:.1%} of its norm",
            "tokens detached before they are fed back, or parts of the derivative left out",
        )


def _gap(found: Tensor, expected: Tensor) -> float:
    """Distance of two gradients (d,), relative to the norm of the second."""
    return float((found - expected).norm() / expected.norm())


def law(subject: Subject) -> str:
    """Residuals one_hot(token) - softmax(logits) have mean zero, and so have their products between positions."""
    if not subject.pathwise:
        raise Skipped("does not promise to follow a path")
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
            f"tokens don't follow the policy, or positions share noise (p = {found.p_value:.1g})",
            "Gumbel noise of its own for every position and sample, added to the logits",
        )
    return f"tokens follow the policy, independently (p = {found.p_value:.2g}, {found.draws} draws)"
