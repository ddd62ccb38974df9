"""The contract of an estimator, executable: what `gradebench check` runs, on problems small enough to be exact.

The statistical checks of one run share a false-alarm rate of FALSE_ALARM. Each draws as much as it takes to see a bias of
MARGIN of the gradient's norm with probability 0.999, and a promise counts as kept only if, besides, the intervals
along all directions looked at exclude a bias of EQUIVALENCE. The problems are fixed: V = 3, T = 3, a policy that heeds its prefix, a reward that is neither additive nor
quadratic; fewer positions or a simpler reward would hide a wrong detach or prefix.
"""

import copy
import random
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gradebench import registry
from gradebench.enumerable import random_sequence_problem
from gradebench.estimator import NEEDS, Estimate, Estimator
from gradebench.factorised import FactorisedProblem
from gradebench.hotelling import MeanTest, mean_test
from gradebench.probes import flatten, one_estimate
from gradebench.problem import Guarded, Ledger, Problem
from gradebench.sampling import generator
from gradebench.sequence import SequenceProblem
from gradebench.watched import Notes, Watched

FALSE_ALARM = 1e-3  # of all statistical checks of one run together
ALPHA = FALSE_ALARM / 6  # of each: there are at most six
MARGIN = 0.15  # of the gradient's norm: a bias that must be seen
EQUIVALENCE = 0.25  # of the gradient's norm: a bias that must be excluded
SEQUENCES = 256  # in one draw, so that draws are near normal
OFFSET = 0.25  # on a reward between 0 and 1
BETA = 0.1  # of the KL penalty, through which f depends on the parameters
ONE_DECISION = {2: 91, 3: 29}  # vocabulary to the random weights at which one decision has a large gradient
LEARNING = 40  # steps of the estimator's own parts before it is judged
EXTREME = 30.0  # factor on the weights of a policy, or size of logits

Make = Callable[..., Estimator]  # options to a fresh estimator


@dataclass(frozen=True)
class Finding:
    """One line of the answer. `status`: pass, fail, info (a number without a promise) or skip (does not apply)."""

    check: str
    status: str
    detail: str
    advice: str = ""  # on failure: what to look at


class Failed(Exception):
    """A broken promise: what was found, and what to look at."""

    def __init__(self, detail: str, advice: str):
        super().__init__(detail)
        self.advice = advice


class Skipped(Exception):
    """The check doesn't apply, and why."""


@dataclass
class Subject:
    """The estimator under test; every check builds it anew."""

    make: Make
    seed: int

    def __post_init__(self) -> None:
        self.learned: dict[str, Estimator] = {}
        sample = self.make()
        self.needs, self.n, self.period = sample.needs, sample.n, sample.period
        self.unbiased, self.unbiased_if, self.pathwise = sample.unbiased, sample.unbiased_if, sample.pathwise

    def rng(self, *names: object) -> torch.Generator:
        return generator("cpu", "check", self.seed, *names)

    def sequences(self, copies: int = 1, beta: float | None = None, horizon: int = 3) -> SequenceProblem:
        """Four prompts, each `copies` times; binary tokens for estimators that need them."""
        if beta is None:
            beta = 0.0 if "fixed_reward" in self.needs else BETA
        copies = 1 if "exact" in self.needs else copies  # its draws are all alike
        vocabulary = 2 if "binary" in self.needs else 3
        instance = ONE_DECISION[vocabulary] if horizon == 1 else 0
        problem = random_sequence_problem(vocabulary, horizon, 4, beta, instance)
        lacking = self.needs - problem.offers
        if lacking:
            raise Skipped(f"needs {', '.join(sorted(lacking))}, which no problem here offers")
        return problem.select(torch.arange(4).repeat(copies)) if copies > 1 else problem

    def ready(self, problem: Any, **options: Any) -> Estimator:
        """Built for the problem and frozen, half-way between its start and what it then learns: a wrong baseline is
        often zero at the start, and a wrong control variate switched off in the end."""
        key = f"{sorted(options.items())} {problem.horizon} {problem.categories} {problem.feature_size}"
        if key not in self.learned:
            self.learned[key] = self._learned(problem, options)
        return copy.deepcopy(self.learned[key])

    def _learned(self, problem: Any, options: dict[str, Any]) -> Estimator:
        estimator = self.make(**options)
        estimator.init(problem)
        own = [p for p in estimator.parameters() if p.requires_grad]
        start = [p.detach().clone() for p in own]
        optimizer = torch.optim.Adam(own, lr=estimator.own_learning_rate) if own else None
        rng, guarded = self.rng("own state"), Guarded(problem, estimator.needs)
        for _ in range(LEARNING if own else 4 * estimator.period):
            estimate = estimator.gradient(guarded, rng)  # type: ignore[arg-type]
            if optimizer and estimate.own_loss is not None:
                for p, g in zip(own, torch.autograd.grad(estimate.own_loss, own, allow_unused=True), strict=True):
                    p.grad = g
                optimizer.step()
        with torch.no_grad():
            for p, before in zip(own, start, strict=True):
                p.lerp_(before, 0.5)
        estimator.reset()
        return estimator.eval()

    def gradient(self, estimator: Estimator, problem: Any, rng: torch.Generator) -> Tensor:
        """One fresh estimate (d,), through the guard that enforces `needs`."""
        return one_estimate(estimator, problem, rng)


def check(make: Make, seed: int = 0, only: Sequence[str] = ()) -> list[Finding]:
    """The findings on the estimator that `make` builds, in the order of the checks; `only` some of them, by name."""
    try:
        subject = Subject(make, seed)
    except Exception as error:  # noqa: BLE001 - an author's code may raise anything; that is the finding
        return [Finding("can be built", "fail", _line(error), "the constructor, with its default options")]
    findings: list[Finding] = []
    for name, function in CHECKS.items():
        if only and name not in only:
            continue
        findings += _found(name, function, subject)
        if function is _shape and findings[-1].status == "fail":
            return findings  # nothing else could be read
    return findings


def report(spec: str, seed: int) -> dict[str, Any]:
    """What `gradebench check --json` prints. Raises InputError for a spec that stands for no estimator."""
    resolved = registry.resolve("estimators", spec)
    torch.set_num_threads(1)  # the problems are tiny
    findings = check(lambda **options: replace(resolved, params=resolved.params | options).create(), seed)
    return {
        "estimator": resolved.label,
        "params": resolved.params,
        "source": resolved.source,
        "seed": seed,
        "false_alarm_rate": FALSE_ALARM,
        "margin": MARGIN,
        "passed": all(finding.status != "fail" for finding in findings),
        "findings": [asdict(finding) for finding in findings],
    }


def _found(name: str, function: Callable[[Subject], Any], subject: Subject) -> Iterator[Finding]:
    """The findings of one check; whatever the estimator raises is one."""
    state = torch.get_rng_state()
    try:
        answer = function(subject)
        for detail in [answer] if isinstance(answer, str) else answer:
            yield detail if isinstance(detail, Finding) else Finding(name, "pass", detail)
    except Failed as failure:
        yield Finding(name, "fail", str(failure), failure.advice)
    except Skipped as reason:
        yield Finding(name, "skip", str(reason))
    except Exception as error:  # noqa: BLE001
        yield Finding(name, "fail", _line(error), _place(error))
    finally:
        torch.set_rng_state(state)


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _place(error: Exception) -> str:
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"{Path(place.filename).name}, line {place.lineno}"


# --- the shape of the answer --------------------------------------------------------------------------------------


def _shape(subject: Subject) -> str:
    if not subject.needs <= NEEDS:
        raise Failed(
            f"needs {', '.join(sorted(subject.needs - NEEDS))}, which no problem can offer",
            f"`needs` may hold {', '.join(sorted(NEEDS))}",
        )
    problem = subject.sequences()
    estimator = subject.make()
    estimator.init(problem)
    estimate = estimator.gradient(Guarded(problem, estimator.needs), subject.rng("shape"))  # type: ignore[arg-type]
    if not isinstance(estimate, Estimate):
        raise Failed(f"gradient returned {type(estimate).__name__}, not an Estimate", "return Estimate(grad)")
    shapes, wanted = ([tuple(t.shape) for t in tensors] for tensors in (estimate.grad, problem.params))
    if shapes != wanted:
        raise Failed(f"grad has shapes {shapes}, the parameters {wanted}", "grad is aligned with problem.params")
    if any(g.requires_grad for g in estimate.grad):
        raise Failed("grad still has a graph", "detach it, after own_loss has been taken from it")
    if any(g.dtype != p.dtype for g, p in zip(estimate.grad, problem.params, strict=True)):
        raise Failed("grad has another dtype than the parameters", "constants or buffers of a fixed dtype")
    return f"{len(shapes)} gradients, {subject.n} samples a prompt, {subject.period} calls a batch"


def _own_loss(subject: Subject) -> str:
    problem = subject.sequences(copies=8)
    estimator = subject.ready(problem).train()
    own = [p for p in estimator.parameters() if p.requires_grad]
    estimate = estimator.gradient(Guarded(problem, estimator.needs), subject.rng("own loss"))  # type: ignore[arg-type]
    if not own:
        if estimate.own_loss is not None and estimate.own_loss.requires_grad:
            raise Failed("there is an own_loss but nothing of its own to learn", "register parts as nn.Parameter")
        raise Skipped("learns nothing of its own")
    if estimate.own_loss is None or estimate.own_loss.numel() != 1:
        raise Failed("own parameters but no scalar own_loss in train()", "Estimate(grad, own_loss=...)")
    gradients = torch.autograd.grad(estimate.own_loss, own, allow_unused=True)
    reached = [g for g in gradients if g is not None and bool(g.isfinite().all()) and bool(g.abs().sum() > 0)]
    if not reached:
        raise Failed("own_loss reaches none of the estimator's own parameters", "a detach too many before own_loss")
    return f"own_loss moves {len(reached)} of {len(own)} own parameters"


# --- random numbers and side effects --------------------------------------------------------------------------------


def _deterministic(subject: Subject) -> str:
    problem = subject.sequences(copies=8)
    estimator = subject.ready(problem)
    first = subject.gradient(estimator, problem, subject.rng("a"))
    estimator.gradient(Guarded(problem, estimator.needs), subject.rng("b"))  # type: ignore[arg-type]
    again = subject.gradient(estimator, problem, subject.rng("a"))  # its reset() must drop what was left of "b"
    if not torch.equal(first, again):
        raise Failed(
            "the same generator gave another gradient",
            "draws from elsewhere than `rng`; state that moves in eval(); reset() that keeps a rollout",
        )
    other = subject.gradient(estimator, problem, subject.rng("c"))
    if torch.equal(first, other) and "exact" not in subject.needs:
        raise Failed("another generator gave the same gradient", "a noise that is drawn once and kept")
    return "same generator, same gradient; reset() draws afresh"


def _no_hidden_randomness(subject: Subject) -> str:
    problem = subject.sequences(copies=8)
    estimator = subject.ready(problem)
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002 - the global generator is what an estimator must not use
        random.seed(seed)
        before = _global_state()
        found.append(subject.gradient(estimator, problem, subject.rng("a")))
        if before != _global_state():
            raise Failed("a global random generator was used", "draw from `rng` alone: generator=rng")
    if not torch.equal(*found):
        raise Failed("a global seed changes the gradient", "draw from `rng` alone: generator=rng")
    return "global generators untouched and without effect"


def _global_state() -> tuple[bytes, str, str]:
    return torch.get_rng_state().numpy().tobytes(), str(np.random.get_state()), str(random.getstate())  # noqa: NPY002


def _leaves_alone(subject: Subject) -> str:
    problem = subject.sequences(copies=8)
    policy = problem.policy
    assert isinstance(policy, torch.nn.Module)
    estimator = subject.ready(problem).train()
    before = {name: p.detach().clone() for name, p in policy.state_dict().items()}
    mode, prompts = policy.training, problem.prompts.clone()
    for _ in range(subject.period):
        estimator.gradient(Guarded(problem, estimator.needs), subject.rng("a"))  # type: ignore[arg-type]
    changed = [name for name, p in policy.state_dict().items() if not torch.equal(p, before[name])]
    if changed:
        raise Failed(f"changed the policy: {', '.join(changed)}", "in-place writes; use problem.shifted(delta)")
    if any(p.grad is not None for p in problem.params):
        raise Failed("left gradients in the policy's .grad", "problem.grad(value), not value.backward()")
    if not all(p.requires_grad for p in problem.params) or policy.training != mode:
        raise Failed("switched the policy's mode or requires_grad", "leave train(), eval() and requires_grad_ alone")
    if not torch.is_grad_enabled() or not torch.equal(prompts, problem.prompts):
        raise Failed("left autograd switched off, or wrote into the prompts", "with torch.no_grad(): ...")
    return "parameters, .grad, mode and autograd as before"


def _frozen(subject: Subject) -> str:
    problem = subject.sequences(copies=8)
    estimator = subject.ready(problem)
    state = copy.deepcopy(estimator.state_dict())
    frozen = subject.gradient(estimator, problem, subject.rng("a"))
    moved = [name for name, t in estimator.state_dict().items() if not torch.equal(t, state[name])]
    if moved:
        raise Failed(f"eval() does not freeze {', '.join(moved)}", "update running state `if self.training` only")
    learning = subject.gradient(estimator.train(), problem, subject.rng("a"))
    if not torch.allclose(frozen, learning, rtol=1e-6, atol=1e-9):
        raise Failed(
            "train() and eval() give different gradients from one state",
            "a loss of the estimator's own leaking into grad; state updated before use",
        )
    return "eval() freezes all state; train() gives the same gradient"


# --- numbers ----------------------------------------------------------------------------------------------------


def _extreme(subject: Subject) -> str:
    problem = subject.sequences(copies=8)
    assert isinstance(problem.policy, torch.nn.Module)
    single = problem.policy.float()
    with torch.no_grad():
        for p in single.parameters():
            p.mul_(EXTREME)
    for module in (problem.reward_model, problem.reference):
        module.float()  # type: ignore[union-attr]
    _require_finite(subject, problem, "at extreme logits", "log(0), exp overflow, or 0 * inf: work with log_softmax")
    return f"finite in float32 with all weights times {EXTREME:g}"


def _autocast(subject: Subject) -> str:
    for dtype in (torch.bfloat16, torch.float16):
        problem = subject.sequences(copies=8)
        for module in (problem.policy, problem.reward_model, problem.reference):
            module.float()  # type: ignore[union-attr]
        with torch.autocast("cpu", dtype=dtype):
            _require_finite(subject, problem, f"under {dtype} autocast", "noise or logarithms in half precision")
    return "finite in bfloat16 and float16"


def _require_finite(subject: Subject, problem: SequenceProblem, where: str, advice: str) -> None:
    estimator = subject.make()
    estimator.init(problem)
    for i in range(4):
        found = subject.gradient(estimator, problem, subject.rng(where, i))
        if not bool(found.isfinite().all()):
            raise Failed(f"{int((~found.isfinite()).sum())} of {len(found)} entries are not finite {where}", advice)


# --- declarations and the ledger --------------------------------------------------------------------------------


_USES = {"soft_reward": {"soft_reward", "rollout"}, "support": {"support"}, "exact": {"exact_gradient"}}


def _needs(subject: Subject) -> str:
    problem = Watched(subject.sequences(copies=8))
    subject.gradient(subject.ready(problem), problem, subject.rng("a"))  # what isn't declared raises
    idle = [need for need in subject.needs & set(_USES) if not _USES[need] & problem.notes.called]
    if idle:
        raise Failed(
            f"declares {', '.join(sorted(idle))} and doesn't use it",
            "cells would be skipped for nothing: shorten `needs`",
        )
    return f"uses what it declares: {', '.join(sorted(subject.needs)) or 'nothing beyond samples and rewards'}"


def _ledger(subject: Subject) -> str:
    counts = []
    for contexts in (2, 2, 4):
        problem = subject.sequences().select(torch.arange(contexts).repeat(8))
        problem.ledger = ledger = Ledger()
        watched = Watched(problem)
        estimator = subject.ready(watched)
        ledger.__init__()  # type: ignore[misc]
        watched.notes = Notes()
        subject.gradient(estimator, watched, subject.rng("a"))
        if problem.ledger is not ledger:
            raise Failed("the ledger was replaced", "the problem keeps it; an estimator never writes it")
        counts.append(asdict(ledger))
        seen = asdict(watched.notes.ledger)
        for name in () if "exact" in subject.needs else ("reward_calls", "tokens_sampled", "backward_passes"):
            if ledger.__dict__[name] != seen[name]:
                raise Failed(
                    f"the ledger has {ledger.__dict__[name]} {name}, {seen[name]} were seen",
                    "rewards, draws and gradients only through `problem`; never write its ledger",
                )
    if counts[0] != counts[1]:
        raise Failed("the same call cost differently the second time", "a cache across calls")
    if not counts[0]["reward_calls"]:
        raise Failed("no reward was ever asked for", "rewards come from problem.reward or problem.soft_reward")
    if counts[2]["reward_calls"] != 2 * counts[0]["reward_calls"]:
        raise Failed("twice the prompts did not cost twice the reward calls", "contexts left out or read twice")
    return ", ".join(f"{value} {name.replace('_', ' ')}" for name, value in counts[0].items()) + " for 16 prompts"


def _scale(subject: Subject) -> str:
    def gradient(factor: float) -> Tensor:
        problem = Watched(subject.sequences(copies=8), factor)
        estimator = subject.make()
        estimator.init(problem)  # type: ignore[arg-type]
        return subject.gradient(estimator, problem, subject.rng("a"))

    once, tenfold = gradient(1.0), gradient(10.0)
    size = float(once.norm())
    if float((tenfold - 10 * once).norm()) < 1e-5 * 10 * size:
        return "ten times the reward, ten times the gradient"
    if float((tenfold - once).norm()) < 1e-3 * size:
        return "ten times the reward, the same gradient: it normalises"
    raise Failed(
        "ten times the reward changes the gradient neither tenfold nor not at all",
        "rewards clipped or mixed with constants; only part of f normalised",
    )


def _shift(subject: Subject) -> str:
    plain, moved = (Watched(subject.sequences(SEQUENCES // 4), 1.0, offset) for offset in (0.0, OFFSET))
    estimator = subject.ready(plain)

    def draw(count: int, start: list[int] = [0]) -> NDArray[np.float64]:  # noqa: B006 - counts on between calls
        numbers = range(start[0], start[0] + count)
        start[0] += count
        return np.stack([_difference(subject, estimator, plain, moved, number) for number in numbers])

    scale = float(np.linalg.norm(subject.gradient(estimator, plain, subject.rng("shift")).numpy()))
    if np.abs(draw(2)).max() < 1e-9 * scale:
        return "a constant in the reward changes nothing"
    found = mean_test(draw, np.zeros(sum(p.numel() for p in plain.params)), scale, ALPHA, MARGIN)
    if not subject.unbiased and found.size < EQUIVALENCE:
        return f"a constant in the reward moves the mean gradient by {found.size:.0%}: below {EQUIVALENCE:.0%}"
    _judge(found, "a constant in the reward moves the mean gradient", "weights of grad log p whose mean isn't zero")
    return f"a constant in the reward adds noise, no bias (p = {found.p_value:.2g}, {found.draws} draws)"


def _difference(subject: Subject, estimator: Estimator, plain: Any, moved: Any, number: int) -> NDArray[np.float64]:
    """Gradient with the constant less gradient without, from the same random numbers."""
    a, b = (subject.gradient(estimator, problem, subject.rng("shift", number)) for problem in (moved, plain))
    return (a - b).numpy()


# --- unbiasedness -----------------------------------------------------------------------------------------------


def _truth(problem: Problem) -> tuple[float, NDArray[np.float64]]:
    """Norm of the exact gradient, and the gradient (d,)."""
    gradient = flatten(problem.exact_gradient()).numpy()
    return float(np.linalg.norm(gradient)), gradient


def _compared(subject: Subject, problem: Any, truth: Problem, label: str, **options: Any) -> MeanTest:
    """The mean of fresh gradients on `problem` against the exact one of `truth`, the same objective."""
    estimator = subject.ready(truth, **options)
    size, gradient = _truth(truth)
    drawn = 0

    def draw(count: int) -> NDArray[np.float64]:
        nonlocal drawn
        drawn += count
        rngs = (subject.rng(label, number) for number in range(drawn - count, drawn))
        return np.stack([subject.gradient(estimator, problem, rng).numpy() for rng in rngs])

    return mean_test(draw, gradient, size, ALPHA, MARGIN)


def _judge(found: MeanTest, failure: str, advice: str) -> None:
    """Raises Failed where the test rejects, or could not have."""
    if found.p_value < ALPHA:
        share = f"{found.share:+.0%} ± {found.error:.0%} along the gradient"
        raise Failed(f"{failure}: {share} (p = {found.p_value:.1g}, {found.draws} draws)", advice)
    if found.largest > EQUIVALENCE:
        raise Failed(
            f"too noisy to tell: {found.draws} draws leave a bias of up to {found.largest:.0%} possible",
            f"its variance; a bias of {MARGIN:.0%} would be seen with probability {found.power:.2f} only",
        )


def _kept(found: MeanTest) -> str:
    return (
        f"bias {found.share:+.1%} ± {found.error:.1%} along the gradient, at most {found.largest:.0%} anywhere "
        f"(p = {found.p_value:.2g}; {found.draws} draws; a bias of {MARGIN:.0%} is seen with probability {found.power:.3f})"
    )


_BIAS_ADVICE = "a baseline that has seen its sample, a wrong factor, a detach too many or too few, noise used twice, grad f left out"


def _unbiased(subject: Subject) -> list[Finding]:
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


def _conditions(subject: Subject) -> list[Finding]:
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
    with one.shifted(delta):
        size, gradient = _truth(one)
    drawn = 0

    def draw(count: int) -> NDArray[np.float64]:
        nonlocal drawn
        drawn += count
        return np.stack([second(number) for number in range(drawn - count, drawn)])

    def second(number: int) -> NDArray[np.float64]:
        estimator.reset()
        rng, guarded = subject.rng("off policy", number), Guarded(problem, estimator.needs)
        estimator.gradient(guarded, rng)  # type: ignore[arg-type]
        with problem.shifted(delta):
            return flatten(estimator.gradient(guarded, rng).grad).numpy()  # type: ignore[arg-type]

    return mean_test(draw, gradient, size, ALPHA, MARGIN)


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


def _pathwise(subject: Subject) -> str:
    if not subject.pathwise:
        raise Skipped("does not promise to follow a path")
    problem = Watched(subject.sequences(copies=32))
    estimator = subject.ready(problem)
    found = subject.gradient(estimator, problem, subject.rng("path"))
    notes = problem.notes
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
    gap = float((found - expected).norm() / expected.norm())
    if gap > 1e-6:
        raise Failed(
            f"the gradient is off the derivative along the rollout by {gap:.1%} of its norm",
            "tokens detached before they are fed back, or parts of the derivative left out",
        )
    return "the derivative of the reward along its own rollout"


def _law(subject: Subject) -> str:
    """Residuals one_hot(token) - softmax(logits) have mean zero, and so have their products between positions."""
    if not subject.pathwise:
        raise Skipped("does not promise to follow a path")
    problem = Watched(subject.sequences(copies=SEQUENCES // 4))
    estimator = subject.ready(problem)
    drawn = 0

    def draw(count: int) -> NDArray[np.float64]:
        nonlocal drawn
        drawn += count
        return np.stack([residuals(number) for number in range(drawn - count, drawn)])

    def residuals(number: int) -> NDArray[np.float64]:
        subject.gradient(estimator, problem, subject.rng("law", number))
        parts = []
        for logits, tokens in problem.notes.steps:
            chosen = torch.nn.functional.one_hot(tokens.argmax(-1), tokens.shape[-1])
            parts.append((chosen - logits.softmax(-1)).flatten(0, 1))  # (n B, V)
        products = [(a.unsqueeze(-1) * b.unsqueeze(-2)).flatten(1) for i, a in enumerate(parts) for b in parts[i + 1 :]]
        return torch.cat([*parts, *products], 1).mean(0).numpy()

    size = draw(1).shape[1]
    found = mean_test(draw, np.zeros(size), 0.2, ALPHA, MARGIN)
    if found.p_value < ALPHA:
        raise Failed(
            f"tokens don't follow the policy, or positions share noise (p = {found.p_value:.1g})",
            "Gumbel noise of its own for every position and sample, added to the logits",
        )
    return f"tokens follow the policy, independently (p = {found.p_value:.2g}, {found.draws} draws)"


CHECKS: dict[str, Callable[[Subject], str | Sequence[Finding]]] = {
    "keeps the shape of its answer": _shape,
    "deterministic given the generator": _deterministic,
    "no hidden randomness": _no_hidden_randomness,
    "leaves the policy alone": _leaves_alone,
    "frozen by eval()": _frozen,
    "own loss": _own_loss,
    "finite at extreme logits": _extreme,
    "finite under autocast": _autocast,
    "needs": _needs,
    "ledger": _ledger,
    "scale": _scale,
    "shift": _shift,
    "pathwise": _pathwise,
    "law of the draws": _law,
    "unbiased if": _conditions,
    "unbiased": _unbiased,
}
