"""Checks of conduct: the answer's shape, random numbers, side effects, finite numbers, declarations, the ledger."""

import copy
import random
from dataclasses import asdict

import numpy as np
import torch
from torch import Tensor

from gradebench.checks.subject import Failed, Skipped, Subject
from gradebench.checks.watched import Notes, Watched
from gradebench.core.estimator import NEEDS, Estimate
from gradebench.core.global_state import QUICK
from gradebench.core.problem import Ledger
from gradebench.core.view import Guarded
from gradebench.problems.sequence import SequenceProblem

NORMALISED = 0.01  # of the gradient's norm: a change by no more is that of a constant under a standard deviation
EXTREME = 30.0  # factor on the weights of a policy, or size of logits


# --- the shape of the answer --------------------------------------------------------------------------------------


def shape(subject: Subject) -> str:
    if not subject.needs <= NEEDS:
        raise Failed(
            f"needs {', '.join(sorted(subject.needs - NEEDS))}, which no problem can offer",
            f"`needs` may hold {', '.join(sorted(NEEDS))}",
        )
    problem = subject.sequences()
    estimator = subject.make()
    estimator.init(problem)
    estimate = subject.estimate(estimator, problem, subject.rng("shape"))
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


def own_loss(subject: Subject) -> str:
    problem = subject.sequences(copies=8)
    estimator = subject.ready(problem).train()
    own = [p for p in estimator.parameters() if p.requires_grad]
    estimate = subject.estimate(estimator, problem, subject.rng("own loss"))
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


def deterministic(subject: Subject) -> str:
    problem = subject.sequences(copies=8)
    estimator = subject.ready(problem)
    first = subject.gradient(estimator, problem, subject.rng("a"))
    subject.estimate(estimator, problem, subject.rng("b"))
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


def no_hidden_randomness(subject: Subject) -> str:
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


def leaves_alone(subject: Subject) -> str:
    problem = subject.sequences(copies=8)
    policy = problem.policy
    assert isinstance(policy, torch.nn.Module)
    estimator = subject.ready(problem).train()
    before = {name: p.detach().clone() for name, p in policy.state_dict().items()}
    mode, prompts = policy.training, problem.prompts.clone()
    settings = [setting.read() for setting in QUICK]
    for _ in range(subject.period):
        estimator.gradient(Guarded(problem, estimator.needs), subject.rng("a"))  # type: ignore[arg-type]
    changed = [name for name, p in policy.state_dict().items() if not torch.equal(p, before[name])]
    if changed:
        raise Failed(f"changed the policy: {', '.join(changed)}", "in-place writes; use problem.shifted(delta)")
    if any(p.grad is not None for p in problem.params):
        raise Failed("left gradients in the policy's .grad", "problem.grad(value), not value.backward()")
    if not all(p.requires_grad for p in problem.params) or policy.training != mode:
        raise Failed("switched the policy's mode or requires_grad", "leave train(), eval() and requires_grad_ alone")
    if not torch.equal(prompts, problem.prompts):
        raise Failed("wrote into the prompts", "clone what is written into")
    left = [setting.name for setting, value in zip(QUICK, settings, strict=True) if setting.read() != value]
    if left:
        raise Failed(
            f"changed a setting of the whole process: {', '.join(left)}", "a context: with torch.no_grad(): ..."
        )
    return "parameters, .grad, mode and settings of the process as before"


def frozen(subject: Subject) -> str:
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


def extreme(subject: Subject) -> str:
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


def autocast(subject: Subject) -> str:
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


def needs(subject: Subject) -> str:
    problem = Watched(subject.sequences(copies=8))
    subject.gradient(subject.ready(problem), problem, subject.rng("a"))  # what isn't declared raises
    idle = [need for need in subject.needs & set(_USES) if not _USES[need] & problem.notes.called]
    if idle:
        raise Failed(
            f"declares {', '.join(sorted(idle))} and doesn't use it",
            "cells would be skipped for nothing: shorten `needs`",
        )
    return f"uses what it declares: {', '.join(sorted(subject.needs)) or 'nothing beyond samples and rewards'}"


def ledger(subject: Subject) -> str:
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
        raise Failed("no reward was ever asked for", "rewards come from problem.reward, raw_reward or soft_reward")
    if counts[2]["reward_calls"] != 2 * counts[0]["reward_calls"]:
        raise Failed("twice the prompts did not cost twice the reward calls", "contexts left out or read twice")
    return ", ".join(f"{value} {name.replace('_', ' ')}" for name, value in counts[0].items()) + " for 16 prompts"


def scale(subject: Subject) -> str:
    def gradient(factor: float) -> Tensor:
        problem = Watched(subject.sequences(copies=8), factor)
        estimator = subject.make()
        estimator.init(problem)  # type: ignore[arg-type]
        return subject.gradient(estimator, problem, subject.rng("a"))

    once, tenfold = gradient(1.0), gradient(10.0)
    size = float(once.norm())
    if float((tenfold - 10 * once).norm()) < 1e-5 * 10 * size:
        return "ten times the reward, ten times the gradient"
    if float((tenfold - once).norm()) < NORMALISED * size:
        return "ten times the reward, the same gradient: it normalises"
    if float((gradient(19.0) - 2 * tenfold + once).norm()) < NORMALISED * size:
        return "ten times the reward and its penalty, ten times the penalty's gradient alone: it normalises the reward"
    raise Failed(
        "ten times the reward changes the gradient neither tenfold nor not at all",
        "rewards clipped or mixed with constants; only part of f normalised",
    )
