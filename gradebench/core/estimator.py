"""What an author of an estimator writes: one method, `gradient(problem, rng) -> Estimate`."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from gradebench.core.problem import Problem

# soft_reward   f of relaxed one-hots, differentiable, and rollouts through them
# support       all outcomes can be listed
# exact         the gradient itself is known
# fixed_reward  f doesn't depend on the parameters
# binary        every decision has two outcomes
# independent   no decision reads another
NEEDS = frozenset({"soft_reward", "support", "exact", "fixed_reward", "binary", "independent"})


@dataclass
class Estimate:
    """One stochastic estimate of grad J.

    grad      of J (ascent), aligned with `problem.params`, without a graph.
    own_loss  scalar whose descent improves the estimator's own parameters (value head, control variate,
              temperature); the harness steps those first, because its graph may read the policy's parameters.
    info      numbers worth logging: their means over a training are metrics, "info_NAME". A scalar tensor is read
              only at the end of training, so that no step waits for a GPU.
    """

    grad: Sequence[Tensor]
    own_loss: Tensor | None = None
    info: Mapping[str, float | Tensor] = field(default_factory=dict)


class Estimator(nn.Module):
    """Base of every estimator: `parameters()` are its learned parts, its buffers are running state.

    `train()` lets running state move; `eval()` freezes it, and the probes measure in that mode.
    Hyper-parameters are the typed arguments of `__init__`.
    """

    family: ClassVar[str] = ""  # what it is one of, such as "score function"; for the card
    in_all: ClassVar[bool] = True  # False: `--estimator all` leaves it out
    unbiased: ClassVar[bool] = False  # E[grad] = grad J for any problem; `gradebench check` holds it to that
    corrects: ClassVar[bool] = False  # unbiased too if samples come from another distribution than the policy
    # Where one that is biased in general is exact, and with which options: `gradebench check` holds it to that too.
    # "on_policy": everywhere; "off_policy": calls at moved parameters, on one decision; "linear", "quadratic": such
    # rewards of independent decisions.
    unbiased_if: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    # The estimate is the derivative of soft_reward along one rollout, whose tokens follow the policy.
    pathwise: ClassVar[bool] = False
    needs: ClassVar[frozenset[str]] = frozenset()  # of NEEDS; a problem that lacks one makes the cell `skipped`
    own_learning_rate: ClassVar[float] = 1e-2  # of Adam on the estimator's own parameters
    # What else its numbers depend on: files and folders, named from its own, and "$NAME" for variables.
    depends_on: ClassVar[Sequence[str]] = ()
    n: int = 1  # samples per context; a step's batch of sequences holds batch / n contexts
    period: int = 1  # calls that share one fresh batch (PPO: epochs x minibatches)

    def init(self, problem: Problem) -> None:
        """Build the parts whose shape depends on the problem; called once, before the first gradient.

        Raises Unsupported where the problem is too small for it (cells are then `skipped`).
        """

    def expected_scale(self, problem: Problem) -> float:
        """c where the estimate is exact but for its length, E[grad] = c grad J, in the cases of `unbiased_if`."""
        return 1.0

    def reset(self) -> None:
        """Forget cached rollouts: the next call of `gradient` draws afresh."""

    def gradient(self, problem: Problem, rng: torch.Generator) -> Estimate:
        """One estimate of grad J at the problem's present parameters; all randomness from `rng`."""
        raise NotImplementedError


class FunctionEstimator(Estimator):
    """A plain function `(problem, rng, **options)` that returns gradients or an Estimate."""

    def __init__(self, function: Callable[..., Any], options: Mapping[str, Any] | None = None):
        super().__init__()
        self.function = function
        self.options = dict(options or {})
        self.n = int(self.options.get("n", getattr(function, "n", 1)))
        self.__doc__ = inspect.getdoc(function)

    def gradient(self, problem: Problem, rng: torch.Generator) -> Estimate:
        answer = self.function(problem, rng, **self.options)
        return answer if isinstance(answer, Estimate) else Estimate(answer)


def score(problem: Problem, z: Tensor, reward: Tensor, advantage: Tensor) -> Tensor:
    """Scalar whose gradient is the score-function estimate  grad E f = E[A grad log p + grad f].

    The second term counts wherever f depends on the parameters (a KL penalty, an ELBO).
    Shapes: z (n, B, T); reward, advantage (n, B).
    """
    return (advantage.detach() * problem.log_prob(z).sum(-1) + reward).mean()
