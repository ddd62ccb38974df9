"""Run by test_simulated_device.py in a process of its own: a device that isn't there, on which nothing is computed.

    python tests/gradebench/simulated_device.py CASE...

Tensors have shapes, types and a device, no values (torch's fake tensors on its extension backend). So whatever mixes
devices fails, as it would on a GPU, and so does whatever needs a value: it would make a GPU wait. Prints a line for
each case: its name, and `ok` or the error.
"""

import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from gradebench import Estimate, Estimator, SequenceProblem
from gradebench.core import sampling
from gradebench.experiment import training
from gradebench.experiment.plan import Plan
from gradebench.measurement import moments, probes
from gradebench.models.transformer import ScratchClassifier, ScratchPolicy
from gradebench.plugins import registry

DEVICE = "simulated"
CONTEXTS, PROMPT, HORIZON, BETA = 8, 3, 3, 0.05


class Waited(RuntimeError):
    """A value was copied to the host."""


class Watch(TorchDispatchMode):
    """No tensor may be copied from the device to the host."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        copied = func in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
        if (
            copied
            and result.device.type == "cpu"
            and any(one.device.type != "cpu" for one in args[:2] if is_tensor(one))
        ):
            raise Waited(f"{func} to the host")
        return result


def is_tensor(value: object) -> bool:
    return isinstance(value, Tensor)


class Classifier(ScratchClassifier):
    differentiable = True


def host_generator(device: object, *parts: object) -> torch.Generator:
    """The simulated device has no generator; what is drawn has no value anyway."""
    return torch.Generator()


@contextmanager
def device() -> Iterator[None]:
    with FakeTensorMode(), Watch():
        yield


def problem(
    categories: int = 5, end: int | None = None, road: str = "recorded", padded: bool = False
) -> SequenceProblem:
    shape = (categories, 8, 1, 2, PROMPT + HORIZON)
    with torch.device(DEVICE):
        policy, reference, reward = ScratchPolicy(*shape), ScratchPolicy(*shape), Classifier(*shape)
        prompts = torch.zeros(CONTEXTS, PROMPT, dtype=torch.int64)
        pads = torch.zeros(CONTEXTS, dtype=torch.int64) if padded else None
    for model in (reference, reward):
        model.requires_grad_(False)
    made = SequenceProblem(policy, reward, prompts, HORIZON, categories, reference, BETA, end=end, pads=pads)
    made.straight_through = road  # type: ignore[assignment]
    return made


def estimator_for(name: str, on: SequenceProblem) -> Estimator:
    estimator = registry.resolve("estimators", name).create()
    for part in estimator.modules():  # `to` reads values
        for key, p in part.named_parameters(recurse=False):
            part.register_parameter(key, nn.Parameter(torch.empty(p.shape, device=DEVICE), p.requires_grad))
        for key, buffer in part.named_buffers(recurse=False):
            part.register_buffer(key, torch.empty(buffer.shape, dtype=buffer.dtype, device=DEVICE))
    estimator.init(on)
    return estimator.train()


# --- what is done on the device -----------------------------------------------------------------------------------


def gradient(name: str, **options: Any) -> None:
    """One call of an estimator, with its own loss's gradient."""
    on = problem(**options)
    estimator, rng = estimator_for(name, on), torch.Generator()
    own = [p for p in estimator.parameters() if p.requires_grad]
    estimate = estimator.gradient(on, rng)
    grads = list(estimate.grad)
    if estimate.own_loss is not None:
        grads += [g for g in torch.autograd.grad(estimate.own_loss, own, allow_unused=True) if g is not None]
    require(all(g.device.type == DEVICE for g in grads), "a gradient is on another device")


def steps(name: str) -> None:
    """Steps of training, which wait for the device only to learn whether the gradient is finite."""
    on = problem()
    task: Any = types.SimpleNamespace(params=list(on.params))
    plan = Plan(run_id="", out="", device=DEVICE, steps=2, batch=CONTEXTS)
    trainer = training.Trainer(estimator_for(name, on), task, plan, 0.1)
    asked = 0

    def asking(self: Tensor) -> bool:
        nonlocal asked
        asked += 1
        return True

    with patch.object(Tensor, "__bool__", asking):
        for _ in range(2):
            trainer.step(on, torch.Generator())
    allowed = 2 * trainer.estimator.period * (1 + (trainer.own_optimizer is not None))
    require(asked <= allowed, f"{asked} values asked for in two steps, of at most {allowed}")


def probe(name: str) -> None:
    """Draws at frozen parameters into their moments."""
    on = problem()
    estimator = estimator_for(name, on).eval()
    sizes = [p.numel() for p in on.params]
    total = moments.Moments(torch.zeros(sum(sizes), dtype=torch.float64, device=DEVICE), sizes, 2)
    total.add(*(probes.one_estimate(estimator, on, torch.Generator())[None] for _ in range(2)))
    require(total.recentred().mean.device.type == DEVICE, "moments are on another device")


def require(truth: bool, otherwise: str) -> None:
    if not truth:
        raise AssertionError(otherwise)


# --- mistakes that must be found ----------------------------------------------------------------------------------


def misplaced_noise() -> None:
    with patch.object(sampling, "exponential", lambda like, rng: torch.rand(like.shape)):
        gradient("rloo")


def misplaced_baseline() -> None:
    class Misplaced(Estimator):
        def gradient(self, problem: Any, rng: torch.Generator) -> Estimate:
            z = problem.sample(2, rng)
            weight = problem.reward(z) - torch.zeros(CONTEXTS)
            return Estimate(problem.grad(problem.log_prob(z).sum(-1), weight))

    Misplaced().gradient(problem(), torch.Generator())


def misplaced_reward() -> None:
    whole = Classifier.forward
    with patch.object(Classifier, "forward", lambda *texts: whole(*texts) * torch.ones(1)):
        gradient("rloo")


def misplaced_moments() -> None:
    zeros = torch.zeros
    with patch.object(torch, "zeros", lambda *size, device=None, **rest: zeros(*size, **rest)):
        total = moments.Moments(torch.ones(6, dtype=torch.float64, device=DEVICE), [2, 4], 2)
    total.add(torch.ones(1, 6, dtype=torch.float64, device=DEVICE))


def value_asked_for() -> None:
    on = problem()
    float(on.reward(on.sample(1, torch.Generator())).mean())


def chosen_by_values() -> None:
    on = problem()
    z = on.sample(1, torch.Generator())
    on.reward(z)[z[..., 0] > 1].mean()


def copied_to_the_host() -> None:
    on = problem()
    on.reward(on.sample(1, torch.Generator())).cpu()


MISTAKES: dict[str, Callable[[], None]] = {
    one.__name__: one
    for one in (
        misplaced_noise,
        misplaced_baseline,
        misplaced_reward,
        misplaced_moments,
        value_asked_for,
        chosen_by_values,
        copied_to_the_host,
    )
}


def run(case: str) -> None:
    kind, _, name = case.partition(" ")
    if kind == "mistake":
        MISTAKES[name]()
    elif kind == "step":
        steps(name)
    elif kind == "probe":
        probe(name)
    else:
        options = {"plain": {}, "ends": {"end": 1}, "padded": {"padded": True}, "autograd": {"road": "plain"}}[kind]
        gradient(name, categories=2 if name == "disarm" else 5, **options)


def main() -> None:
    _setup_privateuseone_for_python_backend(DEVICE)
    for module in list(sys.modules.values()):
        if getattr(module, "__name__", "").startswith("gradebench") and hasattr(module, "generator"):
            module.generator = host_generator
    for case in sys.argv[1:]:
        try:
            with device():
                run(case)
        except Exception as error:  # noqa: BLE001 - reported to the test
            print(f"{case}: {type(error).__name__}: {' '.join(str(error).split())[:200]}", flush=True)
        else:
            print(f"{case}: ok", flush=True)


if __name__ == "__main__":
    main()
