"""Makes a loaded model ready for reinforcement learning."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch import nn

from rlhf_lightning.models.lean import make_lean
from rlhf_lightning.models.lora import LoRA
from rlhf_lightning.models.scalar import scalar_model

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


def trainable(model: PreTrainedModel, *, lora: LoRA | None, gradient_checkpointing: bool) -> PreTrainedModel:
    """The model with dropout off, its adapters on if asked for, and activation checkpointing if asked for.

    On CPU its norms and MLPs run leaner (``models.lean``).
    """
    make_lean(without_dropout(model))
    if gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return lora(model) if lora else model


def trainable_scalar(model: PreTrainedModel, *, lora: LoRA | None, gradient_checkpointing: bool) -> PreTrainedModel:
    """As :func:`trainable`, with a scalar head: the model's own if it has one, else a new one that begins at 0."""
    headed = model if hasattr(model, "score") else scalar_model(model)
    made = trainable(headed, lora=None, gradient_checkpointing=gradient_checkpointing)
    return lora.under_head(made) if lora else made


def skeleton(config: PretrainedConfig) -> PreTrainedModel:
    """The model without weights, on the meta device: quick to make at any size, to be checked."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def frozen_copy(model: PreTrainedModel) -> PreTrainedModel:
    """A copy that never trains."""
    return frozen(copy.deepcopy(model))


def frozen(model: PreTrainedModel) -> PreTrainedModel:
    """The model, made to never train."""
    make_lean(without_dropout(model))
    return model.requires_grad_(False).eval()


def without_dropout(model: PreTrainedModel) -> PreTrainedModel:
    """Turns dropout off for good: a ratio of 1 must be 1, and no draw may be hidden."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0  # type: ignore[assignment]
    return model
