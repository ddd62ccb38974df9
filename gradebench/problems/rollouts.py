"""Rollouts of a language model: hard draws, and relaxed ones that are differentiated in one of three modes.

plain     autograd's own graph of all steps
recorded  the same by hand, for the built-in transformer: the fastest on a CPU
parallel  one pass over all positions, for hard tokens: the fastest on a GPU, which step by step would launch many small
          kernels
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from gradebench.core.mixture import Mixture, stacked
from gradebench.core.problem import Choose, MixedRelax, Relax, chosen, continued
from gradebench.core.sampling import straight_through
from gradebench.models.end_of_text import ended_logits, ending_token, is_end, share_ended
from gradebench.models.recorded import Recording
from gradebench.models.replayed import Relaxed, Step
from gradebench.models.replicas import Replicas
from gradebench.problems.passes import Passed
from gradebench.problems.reading import LookUp, TextProblem, in_single

# --- hard draws -------------------------------------------------------------------------------------------------


def draw(problem: TextProblem, choose: Choose, n: int) -> Tensor:
    """`Problem.draw`; activations are kept if a gradient may follow."""
    problem.ledger.forward_passes += 1
    problem.ledger.tokens_sampled += n * problem.contexts * problem.horizon
    transformer = problem.transformer()
    keeps = transformer is not None and torch.is_grad_enabled() and problem.rows_at_once is None
    with torch.no_grad():
        if transformer is None:
            reader: Recording | Decoding = Decoding(problem, n)
        else:
            reader = Recording(transformer, problem.prompts, n, problem.horizon, keeps, problem.pads)
        z = torch.empty(n, problem.contexts, problem.horizon, dtype=torch.int64, device=problem.prompts.device)
        for t in range(problem.horizon):
            logits = reader.read(problem.policy.embed(z[:, :, t - 1].reshape(-1, 1))) if t else reader.start()
            here = in_single(logits).view(n, problem.contexts, -1)
            if t and problem.end is not None:
                here = ended_logits(here, is_end(z[:, :, t - 1], problem.end), problem.end)
            z[:, :, t], parents = chosen(choose(here))
            if parents is not None:
                z[:, :, :t] = continued(z[:, :, :t], parents)
                reader.follow((parents * problem.contexts + torch.arange(problem.contexts, device=z.device)).flatten())
                keeps = False  # activations aren't reordered with their rows
    problem.passes.drew(z, problem.params, reader if keeps and isinstance(reader, Recording) else None)
    return z


class Decoding:
    """A rollout of any policy, token by token and without a graph, with the interface of a `Recording`."""

    def __init__(self, problem: TextProblem, n: int):
        self.problem, self.n, self.cache = problem, n, None

    def start(self) -> Tensor:
        """Logits (n B, V) after the prompts."""
        logits, _, self.cache = self.problem.read_prompts(self.problem.policy, self.n, self.problem.prompts)
        return logits[:, -1]

    def read(self, embeddings: Tensor) -> Tensor:
        """Logits (n B, V) after one more token, given its embedding (n B, 1, D)."""
        pads = self.problem.padding(self.n)
        logits, _, self.cache = self.problem.policy(embeddings, self.cache, **pads)
        return logits[:, -1]

    def follow(self, rows: Tensor) -> None:
        """Continue each sequence from the one that `rows` (n B,) names."""
        self.cache = self.problem.policy.reordered(self.cache, rows)


# --- relaxed draws ----------------------------------------------------------------------------------------------


class Feedback(NamedTuple):
    """What the graph of a parallel rollout leaves out: that a token depends on the ones before it."""

    logits: Tensor  # (n, B, T, V)
    read: Tensor  # embeddings (n B, T - 1, D) of the tokens, as constants
    given: Tensor  # the same embeddings as functions of the tokens


class Rolled(NamedTuple):
    """A relaxed rollout."""

    y: Any  # (n, B, T, V), or a mixture
    ids: Tensor | None  # (n, B, T), if they are one-hots
    passed: Passed  # the policy's logits and features along it
    feedback: Feedback | None = None


def plain(problem: TextProblem, relax: MixedRelax, n: int, hard: bool, sparse: bool = False) -> Rolled:
    """A rollout with autograd's own graph."""
    pads = problem.padding(n)
    logits, features, cache = problem.policy(problem.policy.embed(problem.repeated_prompts(n)), last=1, **pads)
    looks_up = (hard or sparse) and not isinstance(problem.policy, Replicas)
    table = problem.table_of(problem.policy) if looks_up else None
    tokens: list[Tensor | Mixture] = []
    seen: list[tuple[Tensor, Tensor]] = []
    for t in range(problem.horizon):
        if t:
            logits, features, cache = problem.policy(_fed(problem, tokens[-1], table), cache, **pads)
        here, token = _relaxed(problem, relax, logits[:, -1], tokens[-1] if t else None, hard)
        tokens.append(token)
        seen.append((here, features.view(n, problem.contexts, -1)))
    y = stacked(tokens)

    def passed() -> tuple[Tensor, Tensor]:
        logits, features = (torch.stack(parts, 2) for parts in zip(*seen, strict=True))
        return logits, features

    return Rolled(y, y.argmax(-1) if hard else None, passed)


def _fed(problem: TextProblem, token: Tensor | Mixture, table: Tensor | None) -> Tensor:
    """The embeddings (n B, 1, D) of the tokens that were just drawn; with a table, those of one-hots or of a mixture."""
    if isinstance(token, Mixture):
        assert table is not None
        return token.flatten(0, 1).embedded(table).unsqueeze(1)
    read = token.view(-1, 1, problem.categories)
    # One-hots are looked up: a product with them would read the whole table, as much as several layers.
    return problem.policy.embed(read) if table is None else LookUp.apply(read, read.argmax(-1), table)


def recorded(problem: TextProblem, relax: Relax, n: int, hard: bool) -> Rolled:
    """A rollout with one autograd node for all steps, and a small graph for each token."""
    transformer = problem.transformer()
    assert transformer is not None
    ids: list[Tensor] = []  # of one-hots
    steps: list[Step] = []
    with torch.no_grad():
        recording = Recording(transformer, problem.prompts, n, problem.horizon, True, problem.pads)
        for t in range(problem.horizon):
            before = steps[-1].token.detach() if t else None
            if before is None:
                raw = recording.start()
            else:
                raw = recording.read(problem.policy.embed((ids[-1] if hard else before).flatten(0, 1).unsqueeze(1)))
            with torch.enable_grad():
                leaf = raw.detach().requires_grad_()
                if before is not None and problem.end is not None and not hard:
                    before.requires_grad_()  # because it says how far the text has ended
                steps.append(Step(leaf, before, *_relaxed(problem, relax, leaf, before, hard)))
            if hard:
                ids.append(steps[-1].token.argmax(-1))
    z = torch.stack(ids, 2) if hard else None  # (n, B, T)
    read = None if z is None else z[:, :, :-1].flatten(0, 1)
    y, logits, features = Relaxed.apply(recording, steps, read, *problem.policy.parameters())
    return Rolled(y, z, lambda: (logits, features))


def _relaxed(
    problem: TextProblem, relax: MixedRelax, raw: Tensor, before: Tensor | Mixture | None, hard: bool
) -> tuple[Tensor, Any]:
    """Logits and the next token (n, B, V), or a mixture, from logits (n B, V) and the token before it."""
    here = in_single(raw).view(-1, problem.contexts, problem.categories)
    if problem.end is None or before is None:
        return here, relax(here)
    if hard:
        here = ended_logits(here, is_end(before.argmax(-1), problem.end), problem.end)
        return here, relax(here)
    return here, ending_token(relax(here), share_ended(before, problem.end), problem.end)


def parallel(problem: TextProblem, relax: Relax, n: int, rng: torch.Generator) -> Rolled:
    """The same tokens as a plain rollout, with the graph of one parallel pass over them.

    In that pass the tokens' embeddings are constants; `fed_back` adds the dependence of a token on those before it.
    """
    start = rng.get_state()
    with torch.no_grad():
        z = problem.draw(lambda logits: relax(logits).argmax(-1), n)
    end = rng.get_state()
    rng.set_state(start)
    with torch.no_grad():
        read = problem.policy.embed(z[:, :, :-1].flatten(0, 1))  # (n B, T - 1, D)
    read.requires_grad_()
    problem.ledger.forward_passes += 1
    texts = torch.cat([problem.policy.embed(problem.repeated_prompts(n)), read], 1)
    logits, features, _ = problem.policy(texts, last=problem.horizon, **problem.padding(n))
    shape = (n, problem.contexts, problem.horizon, -1)
    logits, features = problem.masked(in_single(logits).reshape(shape), z), features.reshape(shape)
    soft = torch.stack([relax(step) for step in logits.unbind(2)], 2)  # with the same noise as in sampling
    rng.set_state(end)
    y = straight_through(functional.one_hot(z, problem.categories).to(soft.dtype), soft)
    problem.one_hots = (y, z)  # so that they are embedded by look-up
    given = problem.embedded(problem.policy, y, problem.horizon - 1)
    return Rolled(y, z, lambda: (logits, features), Feedback(logits, read, given))


def fed_back(
    problem: TextProblem, feedback: Feedback, value: Tensor, weights: Tensor | None, residual: float
) -> tuple[Tensor, ...]:
    """`grad` through a parallel rollout, in which a token depends on earlier ones through their embeddings only.

    A gradient with respect to the logits gives one with respect to the embeddings that were read; through the tokens that
    were embedded, it gives one with respect to earlier logits, and so on. This is a Neumann series in a matrix that is
    strictly lower triangular in time, so it has at most T terms. It is cut off at the first term that is smaller than
    `residual` times the sum, which is the adjoint of the tokens' embeddings.
    """
    logits, read, given = feedback
    problem.ledger.backward_passes += 1
    weights = torch.ones_like(value) if weights is None else weights
    (direct,) = torch.autograd.grad(value, logits, weights, retain_graph=True, materialize_grads=True)
    of_logits, of_given = direct, torch.zeros_like(given)
    for _ in range(problem.horizon - 1):
        problem.ledger.backward_passes += 1
        (term,) = torch.autograd.grad(logits, read, of_logits, retain_graph=True)
        of_given = of_given + term
        if bool(term.norm() <= residual * of_given.norm()):
            break
        (of_logits,) = torch.autograd.grad(given, logits, term, retain_graph=True)
    problem.ledger.backward_passes += 1
    ends = [(logits, direct)]
    if given.requires_grad:  # with one token there is no feedback
        ends.append((given, of_given))
    outputs, derivatives = zip(*ends, strict=True)
    return torch.autograd.grad(outputs, problem.params, derivatives, allow_unused=True, materialize_grads=True)
