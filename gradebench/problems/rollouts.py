"""Rollouts of a language model: hard draws, and relaxed ones whose graph is made in one of three ways.

plain     autograd's own graph, step after step
recorded  the same by hand, for the transformer made here: the quickest on a CPU
parallel  in parallel over time, hard tokens alone: a GPU would wait for the launch of many small kernels
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from gradebench.core.problem import Choose, Relax, chosen, continued
from gradebench.core.sampling import straight_through
from gradebench.models.end_of_text import ended_logits, ending_token, is_end, share_ended
from gradebench.models.recorded import Recording
from gradebench.models.replayed import Relaxed, Step
from gradebench.models.replicas import Replicas
from gradebench.problems.passes import Passed
from gradebench.problems.reading import LookUp, TextProblem, in_single

# --- hard draws -------------------------------------------------------------------------------------------------


def draw(problem: TextProblem, choose: Choose, n: int) -> Tensor:
    """`Problem.draw`; what is computed for it is kept where a graph may be asked for."""
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
                keeps = False  # activations stay with the rows that they were computed for
    problem.passes.drew(z, problem.params, reader if keeps and isinstance(reader, Recording) else None)
    return z


class Decoding:
    """A rollout by any policy, read token by token without a graph, as by a `Recording` that keeps nothing."""

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
        """Each sequence goes on from the one that `rows` (n B,) names."""
        self.cache = self.problem.policy.reordered(self.cache, rows)


# --- relaxed draws ----------------------------------------------------------------------------------------------


class Feedback(NamedTuple):
    """Of a parallel rollout, what its graph leaves out: that a token depends on the ones before it."""

    logits: Tensor  # (n, B, T, V)
    read: Tensor  # embeddings (n B, T - 1, D) that were read as constants
    given: Tensor  # the embeddings that its tokens give, of the same shape


class Rolled(NamedTuple):
    """A relaxed rollout."""

    y: Tensor  # (n, B, T, V)
    ids: Tensor | None  # (n, B, T) of one-hots
    passed: Passed  # the policy's pass that it was drawn by
    feedback: Feedback | None = None


def plain(problem: TextProblem, relax: Relax, n: int, hard: bool) -> Rolled:
    """Autograd's graph."""
    pads = problem.padding(n)
    logits, features, cache = problem.policy(problem.policy.embed(problem.repeated_prompts(n)), last=1, **pads)
    table = problem.table_of(problem.policy) if hard and not isinstance(problem.policy, Replicas) else None
    tokens: list[Tensor] = []
    seen: list[tuple[Tensor, Tensor]] = []
    for t in range(problem.horizon):
        if t:
            read = tokens[-1].view(-1, 1, problem.categories)
            # One-hots are looked up: a product with them would read the whole table, as much as several layers.
            given = problem.policy.embed(read) if table is None else LookUp.apply(read, read.argmax(-1), table)
            logits, features, cache = problem.policy(given, cache, **pads)
        here, token = _relaxed(problem, relax, logits[:, -1], tokens[-1] if t else None, hard)
        tokens.append(token)
        seen.append((here, features.view(n, problem.contexts, -1)))
    y = torch.stack(tokens, 2)

    def passed() -> tuple[Tensor, Tensor]:
        logits, features = (torch.stack(parts, 2) for parts in zip(*seen, strict=True))
        return logits, features

    return Rolled(y, y.argmax(-1) if hard else None, passed)


def recorded(problem: TextProblem, relax: Relax, n: int, hard: bool) -> Rolled:
    """One node for the whole graph, and a graph of its own for each token."""
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
                    before.requires_grad_()  # how much of the text has ended
                steps.append(Step(leaf, before, *_relaxed(problem, relax, leaf, before, hard)))
            if hard:
                ids.append(steps[-1].token.argmax(-1))
    z = torch.stack(ids, 2) if hard else None  # (n, B, T)
    read = None if z is None else z[:, :, :-1].flatten(0, 1)
    y, logits, features = Relaxed.apply(recording, steps, read, *problem.policy.parameters())
    return Rolled(y, z, lambda: (logits, features))


def _relaxed(
    problem: TextProblem, relax: Relax, raw: Tensor, before: Tensor | None, hard: bool
) -> tuple[Tensor, Tensor]:
    """Logits and the next token (n, B, V), from logits (n B, V) and the token before it."""
    here = in_single(raw).view(-1, problem.contexts, problem.categories)
    if problem.end is None or before is None:
        return here, relax(here)
    if hard:
        here = ended_logits(here, is_end(before.argmax(-1), problem.end), problem.end)
        return here, relax(here)
    return here, ending_token(relax(here), share_ended(before, problem.end), problem.end)


def parallel(problem: TextProblem, relax: Relax, n: int, rng: torch.Generator) -> Rolled:
    """The draws of a plain rollout, their graph that of one parallel pass over the tokens.

    The pass reads the tokens' embeddings as constants. That a token depends on the ones before it, `fed_back` adds.
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
    soft = torch.stack([relax(step) for step in logits.unbind(2)], 2)  # with the noise of the draws again
    rng.set_state(end)
    y = straight_through(functional.one_hot(z, problem.categories).to(soft.dtype), soft)
    problem.one_hots = (y, z)  # looked up, and not multiplied, where they are embedded
    given = problem.embedded(problem.policy, y, problem.horizon - 1)
    return Rolled(y, z, lambda: (logits, features), Feedback(logits, read, given))


def fed_back(
    problem: TextProblem, feedback: Feedback, value: Tensor, weights: Tensor | None, residual: float
) -> tuple[Tensor, ...]:
    """`grad` through a parallel rollout, where a token depends on earlier ones through their embeddings alone.

    The value's derivative by the logits makes one by the embeddings read, the tokens that gave these make of it one
    by earlier logits, and so on: a series in a matrix that is strictly lower triangular in time. It ends after T
    terms and is small long before: at a term below `residual` of the sum, which is the adjoint of the embeddings that
    the tokens give.
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
    if given.requires_grad:  # one token feeds none
        ends.append((given, of_given))
    outputs, derivatives = zip(*ends, strict=True)
    return torch.autograd.grad(outputs, problem.params, derivatives, allow_unused=True, materialize_grads=True)
