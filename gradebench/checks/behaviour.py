"""Checks of behaviour: shapes, use of random numbers, side effects, finite values, declared needs, counted costs."""

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
from gradebench.core.shown import counted
from gradebench.core.view import Guarded
from gradebench.problems.sequence import SequenceProblem

# Relative change of the gradient below which it counts as unchanged: the small constant that is added to a standard
# deviation, so that it can divide, causes as much.
NORMALISED = 0.01
EXTREME = 30.0  # factor on all weights of a policy


# --- the shape of the estimate ------------------------------------------------------------------------------------


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
        raise Failed(
            f"grad has shapes {shapes}, the parameters {wanted}",
            "return one gradient for each of problem.params, in their order",
        )
    if any(g.requires_grad for g in estimate.grad):
        raise Failed("grad still has an autograd graph", "detach grad, after own_loss is computed")
    if any(g.dtype != p.dtype for g, p in zip(estimate.grad, problem.params, strict=True)):
        raise Failed("the dtype of grad isn't that of the parameters", "constants or buffers of a fixed dtype")
    return f"{counted(len(shapes), 'gradient')}, {counted(subject.n, 'sample')} a prompt, {counted(subject.period, 'call')} a batch"


def own_loss(subject: Subject) -> str:
    problem = subject.sequences(copies=8)
    estimator = subject.ready(problem).train()
    own = [p for p in estimator.parameters() if p.requires_grad]
    estimate = subject.estimate(estimator, problem, subject.rng("own loss"))
    if not own:
        if estimate.own_loss is not None and estimate.own_loss.requires_grad:
            raise Failed(
                "there is an own_loss, but the estimator has no parameters of its own", "register them as nn.Parameter"
            )
        raise Skipped("has no parameters of its own")
    if estimate.own_loss is None or estimate.own_loss.numel() != 1:
        raise Failed(
            "has parameters of its own, but returns no scalar own_loss in train()", "Estimate(grad, own_loss=...)"
        )
    gradients = torch.autograd.grad(estimate.own_loss, own, allow_unused=True)
    reached = [g for g in gradients if g is not None and bool(g.isfinite().all()) and bool(g.abs().sum() > 0)]
    if not reached:
        raise Failed(
            "own_loss has no gradient for any of the estimator's own parameters",
            "a detach too many on the way to own_loss",
        )
    return f"own_loss has a gradient for {len(reached)} of {counted(len(own), 'own parameter')}"


# --- random numbers and side effects --------------------------------------------------------------------------------


def deterministic(subject: Subject) -> str:
    problem = subject.sequences(copies=8)
    estimator = subject.ready(problem)
    first = subject.gradient(estimator, problem, subject.rng("a"))
    subject.estimate(estimator, problem, subject.rng("b"))
    again = subject.gradient(estimator, problem, subject.rng("a"))  # after reset(), nothing of "b" may be left
    if not torch.equal(first, again):
        raise Failed(
            "two calls with the same generator gave different gradients",
            "draws from another generator than `rng`; state that changes in eval(); a reset() that keeps a rollout",
        )
    other = subject.gradient(estimator, problem, subject.rng("c"))
    if torch.equal(first, other) and "exact" not in subject.needs:
        raise Failed("two calls with different generators gave the same gradient", "noise that is drawn once and kept")
    return "the same generator gives the same gradient; after reset() new samples are drawn"


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
            raise Failed("a global random generator was used", "draw from `rng` only: generator=rng")
    if not torch.equal(*found):
        raise Failed("the global seed changes the gradient", "draw from `rng` only: generator=rng")
    return "global random generators are not used"


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
        raise Failed(
            f"changed parameters of the policy: {', '.join(changed)}", "in-place writes; use problem.shifted(delta)"
        )
    if any(p.grad is not None for p in problem.params):
        raise Failed(
            "left gradients in .grad of the policy's parameters", "use problem.grad(value), not value.backward()"
        )
    if not all(p.requires_grad for p in problem.params) or policy.training != mode:
        raise Failed("changed the policy's mode or requires_grad", "don't call train(), eval() or requires_grad_ on it")
    if not torch.equal(prompts, problem.prompts):
        raise Failed("changed the prompts in place", "clone a tensor before writing into it")
    left = [setting.name for setting, value in zip(QUICK, settings, strict=True) if setting.read() != value]
    if left:
        raise Failed(
            f"changed a setting of the whole process: {', '.join(left)}",
            "use a context manager, as in `with torch.no_grad(): ...`",
        )
    return "parameters, .grad, mode, and settings of the process are unchanged"


def frozen(subject: Subject) -> str:
    problem = subject.sequences(copies=8)
    estimator = subject.ready(problem)
    state = copy.deepcopy(estimator.state_dict())
    frozen = subject.gradient(estimator, problem, subject.rng("a"))
    moved = [name for name, t in estimator.state_dict().items() if not torch.equal(t, state[name])]
    if moved:
        raise Failed(f"{', '.join(moved)} changed in eval()", "update running state only `if self.training`")
    learning = subject.gradient(estimator.train(), problem, subject.rng("a"))
    if not torch.allclose(frozen, learning, rtol=1e-6, atol=1e-9):
        raise Failed(
            "train() and eval() give different gradients at the same state",
            "own_loss that adds to grad; state that is updated before it is used",
        )
    return "no state changes in eval(); train() gives the same gradient"


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
    _require_finite(subject, problem, "at extreme logits", "log(0), an overflow of exp, or 0 * inf; use log_softmax")
    return f"finite in float32 with all weights of the policy times {EXTREME:g}"


def autocast(subject: Subject) -> str:
    for dtype in (torch.bfloat16, torch.float16):
        problem = subject.sequences(copies=8)
        for module in (problem.policy, problem.reward_model, problem.reference):
            module.float()  # type: ignore[union-attr]
        with torch.autocast("cpu", dtype=dtype):
            _require_finite(subject, problem, f"under {dtype} autocast", "noise or logarithms in half precision")
    return "finite under autocast to bfloat16 and to float16"


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
    subject.gradient(subject.ready(problem), problem, subject.rng("a"))  # the use of what isn't declared raises
    idle = [need for need in subject.needs & set(_USES) if not _USES[need] & problem.notes.called]
    if idle:
        raise Failed(
            f"`needs` has {', '.join(sorted(idle))}, which is never used",
            "remove it from `needs`, or cells are skipped needlessly",
        )
    return f"uses what `needs` declares: {', '.join(sorted(subject.needs)) or 'samples and rewards only'}"


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
            raise Failed("the problem's ledger was replaced", "an estimator must not write to the ledger")
        counts.append(asdict(ledger))
        seen = asdict(watched.notes.ledger)
        for name in () if "exact" in subject.needs else ("reward_calls", "tokens_sampled", "backward_passes"):
            if ledger.__dict__[name] != seen[name]:
                raise Failed(
                    f"the ledger has {name} = {ledger.__dict__[name]}, but {seen[name]} were counted",
                    "rewards, samples and gradients must come from `problem`; don't write to its ledger",
                )
    if counts[0] != counts[1]:
        raise Failed("the same call had another cost the second time", "a cache that outlives a call")
    if not counts[0]["reward_calls"]:
        raise Failed("no reward was computed", "rewards come from problem.reward, raw_reward or soft_reward")
    if counts[2]["reward_calls"] != 2 * counts[0]["reward_calls"]:
        raise Failed(
            "twice as many prompts did not take twice as many reward calls", "prompts that are left out or used twice"
        )
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
        return "ten times the reward gives ten times the gradient"
    if float((tenfold - once).norm()) < NORMALISED * size:
        return "ten times the reward gives the same gradient: it normalises the reward"
    if float((gradient(19.0) - 2 * tenfold + once).norm()) < NORMALISED * size:
        return "ten times the reward and the penalty scales only the gradient of the penalty: it normalises the reward"
    raise Failed(
        "ten times the reward gives neither ten times the gradient nor the same one",
        "rewards that are clipped or mixed with constants; a normalisation of only a part of f",
    )
