"""Low-rank adapters: only they are trained, and without them the pretrained policy is its own reference.

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
    """A causal language model with trainable adapters of rank `rank` on all linear layers but the last; its own weights are
    frozen."""

    def __init__(self, model: nn.Module, categories: int, half: bool, rank: int):
        try:
            from peft import LoraConfig, get_peft_model
            from peft.tuners.tuners_utils import BaseTunerLayer
        except ImportError as error:
            raise InputError("lora needs the package peft: pip install 'gradebench[lora]'") from error
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
        # In lists, because as submodules they would register every parameter twice.
        self._whole = [adapted]
        self._layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]

    def frozen(self) -> "WithoutAdapters":  # type: ignore[override]
        return WithoutAdapters(self)

    def merged(self) -> nn.Module:
        """A copy of the model with the adapters merged into its weights, which can be saved in the hub's format."""
        return copy.deepcopy(self._whole[0]).merge_and_unload()

    @contextmanager
    def switched_off(self) -> Iterator[None]:
        """A context in which the adapters have no effect."""
        for layer in self._layers:
            layer.enable_adapters(False)
        try:
            yield
        finally:
            for layer in self._layers:
                layer.enable_adapters(True)


class WithoutAdapters:
    """The reference policy of an adapted one, for the KL penalty. It shares the weights, so it takes no memory."""

    def __init__(self, adapted: AdaptedPolicy):
        self.adapted, self.feature_size = adapted, adapted.feature_size

    def embed(self, tokens: Tensor) -> Tensor:
        return self.adapted.embed(tokens)

    def __call__(self, *arguments: Any, **options: Any) -> tuple[Tensor, Tensor, Any]:
        with self.adapted.switched_off():
            return self.adapted(*arguments, **options)

    def features_of(self, embeddings: Tensor) -> Tensor:
        with self.adapted.switched_off():
            return self.adapted.features_of(embeddings)

    def reordered(self, cache: Any, rows: Tensor) -> Any:
        return self.adapted.reordered(cache, rows)

    def parameters(self) -> Iterator[Tensor]:
        return iter(())

    def named_parameters(self) -> Iterator[tuple[str, Tensor]]:
        return iter(())
