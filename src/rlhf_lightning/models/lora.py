"""Low-rank adapters: what trains is small, and the reference is the policy with its adapters off."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from rlhf_lightning.models.scalar import scalar_head

if TYPE_CHECKING:
    from peft import LoraConfig
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class LoRA:
    """Low-rank adaptation (Hu et al. 2021), through peft.

    Attributes:
        rank: r.
        alpha: The update is scaled by alpha/r.
        target_modules: Names of the layers adapted, or ``all-linear``.
        seed: Of the adapters' initial weights.
    """

    rank: int = 16
    alpha: int = 32
    target_modules: str | list[str] = "all-linear"
    seed: int = 0

    def __call__(self, model: PreTrainedModel) -> PreTrainedModel:
        """Wraps the model; only its adapters then train. They start as no change at all (B = 0)."""
        from peft import get_peft_model

        with self._seeded():
            return get_peft_model(model, self._config(task_type="CAUSAL_LM"))  # type: ignore[return-value]

    def under_head(self, model: PreTrainedModel) -> PreTrainedModel:
        """Puts adapters into the backbone of a model with a scalar head, in place; they and the head then train."""
        from peft import inject_adapter_in_model

        model.requires_grad_(False)
        with self._seeded():
            inject_adapter_in_model(self._config(), model.base_model)
        scalar_head(model).requires_grad_(True)
        return model

    def _config(self, **more: Any) -> LoraConfig:
        from peft import LoraConfig

        return LoraConfig(
            r=self.rank, lora_alpha=self.alpha, lora_dropout=0.0, target_modules=self.target_modules, **more
        )

    @contextmanager
    def _seeded(self) -> Iterator[None]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            yield


@contextmanager
def adapters_off(model: PreTrainedModel) -> Iterator[PreTrainedModel]:
    """The model as it was before its adapters, for the time of the context."""
    with model.disable_adapter():  # type: ignore[operator]
        yield model


def merged_copy(model: PreTrainedModel) -> PreTrainedModel:
    """A copy without adapters: they are added to the weights they adapt.

    The copy of a 16-bit model with adapters is float32, since most of what small adapters change is less than the last
    digit of a 16-bit weight.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    copied = copy.deepcopy(model)
    adapted = [(name, layer) for name, layer in copied.named_modules() if isinstance(layer, BaseTunerLayer)]
    for tensor in (*copied.parameters(), *copied.buffers()) if adapted else ():
        if tensor.is_floating_point():
            tensor.data = tensor.data.to(torch.promote_types(tensor.dtype, torch.float32))
    for name, layer in adapted:
        layer.merge()
        copied.set_submodule(name, layer.get_base_layer())
    return copied.requires_grad_(False).eval()
