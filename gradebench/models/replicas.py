"""Several copies of a model with parameters of their own, so that one pass gives one gradient for each copy."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn


class Replicas:
    """`copies` copies of a module; row i of its inputs and outputs belongs to copy i % copies.

    The parameters are those of the module, expanded along a new first axis (copies, ...): only their gradients take
    memory, and they can't be written to. Calls of the module and of its `embed` are batched over the copies by
    torch.func.vmap; if no graph is recorded, the module is called directly, as all copies are equal.

    Raises        NotImplementedError for modules whose state changes with a call (dropout, batch statistics).
    """

    def __init__(self, module: Any, copies: int):
        if not isinstance(module, nn.Module):
            raise NotImplementedError(f"{type(module).__name__} is no torch module, so it can't be replicated")
        if any(isinstance(part, nn.Dropout | nn.modules.batchnorm._BatchNorm) for part in module.modules()):
            raise NotImplementedError(f"{type(module).__name__} has dropout or batch statistics")
        self.module: Any = module
        self.copies = copies
        self.mapped = False  # whether a call with a graph was batched over the copies
        self.methods = _Methods(module)
        self.feature_size: int = getattr(module, "feature_size", 0)
        self.trained = {
            name: p.detach().expand(copies, *p.shape).requires_grad_()
            for name, p in module.named_parameters()
            if p.requires_grad
        }

    def named_parameters(self) -> Iterator[tuple[str, Tensor]]:
        return iter(self.trained.items())

    def parameters(self) -> Iterator[Tensor]:
        return iter(self.trained.values())

    def embed(self, tokens: Tensor) -> Tensor:
        return self._call("embed", tokens)

    def __call__(self, embeddings: Tensor, cache: Any = None, last: int | None = None) -> Any:
        inputs = (embeddings,) if cache is None else (embeddings, cache)
        return self._call("forward", *inputs, **({} if last is None else {"last": last}))

    def reordered(self, cache: Any, rows: Tensor) -> Any:
        if self._all_alike():
            return self.module.reordered(cache, rows)
        return _mapped(lambda tensor: tensor[rows], cache)  # the rows of a copy stay rows of this copy

    @property
    def alike(self) -> bool:
        """Whether all copies still have the module's parameters."""
        return all(p.stride(0) == 0 for p in self.trained.values())

    def _all_alike(self) -> bool:
        """Whether all copies give the same: no graph is recorded, and their parameters are equal."""
        return not torch.is_grad_enabled() and self.alike

    def _call(self, method: str, *inputs: Any, **options: Any) -> Any:
        """Call with tensors (N, ...) reshaped to (N / copies, copies, ...), and reshape the results back."""
        if self._all_alike():
            return getattr(self.module, method)(*inputs, **options)
        dealt = _mapped(lambda rows: rows.unflatten(0, (len(rows) // self.copies, self.copies)), inputs)

        def one(trained: dict[str, Tensor], *arguments: Any) -> Any:
            parameters = {f"module.{name}": p for name, p in trained.items()}
            return torch.func.functional_call(self.methods, parameters, (method, *arguments), options)

        recorded = torch.is_grad_enabled()
        self.mapped |= recorded
        with torch.enable_grad():  # without grad, modules may write in place or call fused kernels
            outputs = torch.func.vmap(one, in_dims=(0, *[1] * len(dealt)), out_dims=1)(self.trained, *dealt)
        return _mapped(lambda rows: rows.flatten(0, 1) if recorded else rows.flatten(0, 1).detach(), outputs)


class _Methods(nn.Module):
    """Makes any method of a module its forward, because `functional_call` calls only that."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def forward(self, method: str, *inputs: Any, **options: Any) -> Any:
        return getattr(self.module, method)(*inputs, **options)


def _mapped(function: Callable[[Tensor], Tensor], tree: Any) -> Any:
    """A tree of tuples and lists with function(tensor) in place of every tensor."""
    if isinstance(tree, tuple | list):
        return type(tree)(_mapped(function, branch) for branch in tree)
    return function(tree)
