"""Parts of a model: the transformers model under any adapters, its head, its repeated layers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rlhf_lightning.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """The modules of the longest list in a model: its decoder layers, under adapters too; a head has none."""
    lists = [list(module) for module in model.modules() if isinstance(module, nn.ModuleList)]
    return max(lists, key=len, default=[])


def causal_lm(model: Any) -> PreTrainedModel:
    """The transformers model inside a peft wrapper (its adapters act in it), or the model itself."""
    inner: PreTrainedModel = model.get_base_model() if hasattr(model, "get_base_model") else model
    return inner


def backbone(model: Any) -> nn.Module:
    """What gives a transformers model's final hidden states."""
    found: Any = model.base_model
    if found is model and hasattr(model, "model"):
        found = model.model
    return found  # type: ignore[no-any-return]


def output_head(model: PreTrainedModel) -> nn.Linear:
    """The LM head.

    Raises:
        ConfigError: If there is none, or it is not a plain linear layer (an adapted one, say).
    """
    head = causal_lm(model).get_output_embeddings()  # type: ignore[no-untyped-call]
    if not isinstance(head, nn.Linear):
        raise ConfigError(
            f"{type(causal_lm(model)).__name__}: its LM head is {type(head).__name__}, not a plain linear layer; "
            "leave the head out of the adapter's target_modules"
        )
    return head


class Float32Head(nn.Linear):
    """An LM head whose products and logits are float32, whatever its weights and hidden states are, autocast or not."""

    def forward(self, input: Tensor) -> Tensor:
        """(..., H) to (..., V)."""
        wide = torch.promote_types(input.dtype, torch.float32)
        bias = None if self.bias is None else self.bias.to(wide)
        with torch.autocast(input.device.type, enabled=False):
            return F.linear(input.to(wide), self.weight.to(wide), bias)


def with_float32_head(model: PreTrainedModel) -> PreTrainedModel:
    """The model, its LM head made a :class:`Float32Head` in place.

    Raises:
        ConfigError: As :func:`output_head`.
    """
    head = output_head(model)
    head.__class__ = Float32Head
    head.__dict__.pop("forward", None)  # a lean one, which would multiply in the weights' type
    return model
