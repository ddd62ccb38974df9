"""Low-rank adapters: a pretrained policy of which only a small addition is trained, and which is its own reference.

Source: Hu et al. 2022 (LoRA), eq. 3.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from gradebench.core.errors import InputError
from gradebench.models.pretrained import PretrainedPolicy


class AdaptedPolicy(PretrainedPolicy):
    """A causal language model with adapters of rank `rank` on all linear layers but the last; only they are trained."""

    def __init__(self, model: nn.Module, categories: int, half: bool, rank: int):
        try:
            from peft import LoraConfig, get_peft_model
            from peft.tuners.tuners_utils import BaseTunerLayer
        except ImportError as error:
            raise InputError("lora needs the library of adapters; pip install 'gradebench[lora]'") from error
        config = LoraConfig(
            r=rank,
            lora_alpha=rank,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
            fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # the same adapters for every estimator and seed, as for all initial parameters
            adapted = get_peft_model(model, config)  # puts them into `model` itself
        super().__init__(model, categories, half)
        # Lists, because as modules of this one they would have every parameter twice.
        self._whole = [adapted]
        self._layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]

    def frozen(self) -> "WithoutAdapters":  # type: ignore[override]
        return WithoutAdapters(self)

    def merged(self) -> nn.Module:
        """A copy of the model with the adapters added to its weights: one as any other in the hub's format."""
        return copy.deepcopy(self._whole[0]).merge_and_unload()

    @contextmanager
    def switched_off(self) -> Iterator[None]:
        """The model as it was before adapters."""
        for layer in self._layers:
            layer.enable_adapters(False)
        try:
            yield
        finally:
            for layer in self._layers:
                layer.enable_adapters(True)


class WithoutAdapters:
    """The reference policy of an adapted one, for the KL penalty: the same weights, not a second copy of them."""

    def __init__(self, adapted: AdaptedPolicy):
        self.adapted, self.feature_size = adapted, adapted.feature_size

    def embed(self, tokens: Tensor) -> Tensor:
        return self.adapted.embed(tokens)

    def __call__(self, *arguments: Any, **options: Any) -> tuple[Tensor, Tensor, Any]:
        with self.adapted.switched_off():
            return self.adapted(*arguments, **options)

    def reordered(self, cache: Any, rows: Tensor) -> Any:
        return self.adapted.reordered(cache, rows)

    def parameters(self) -> Iterator[Tensor]:
        return iter(())

    def named_parameters(self) -> Iterator[tuple[str, Tensor]]:
        return iter(())
