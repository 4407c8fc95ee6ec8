"""Low-rank adapters: what trains is small, and the reference is the policy with its adapters off."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
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
        from peft import LoraConfig, get_peft_model

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            config = LoraConfig(
                r=self.rank,
                lora_alpha=self.alpha,
                lora_dropout=0.0,
                target_modules=self.target_modules,
                task_type="CAUSAL_LM",
            )
            return get_peft_model(model, config)  # type: ignore[return-value]


@contextmanager
def adapters_off(model: PreTrainedModel) -> Iterator[PreTrainedModel]:
    """The model as it was before its adapters, for the time of the context."""
    with model.disable_adapter():  # type: ignore[operator]
        yield model
