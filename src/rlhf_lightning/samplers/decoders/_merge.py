"""The weight a layer really applies, low-rank adapters included, without touching the layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def mergeable(model: nn.Module) -> bool:
    """Whether every adapted layer is plain LoRA, whose effect is an addition to the weight.

    False for DoRA and other variants, for adapters that are not LoRA, on the experts' joint weights, and for layers
    replaced as a whole.
    """
    return all(_is_plain_lora(module) for module in model.modules() if _is_adapted(module))


def effective_weight(module: nn.Module) -> Tensor:
    """``W + Σ scale·B·A`` over the active adapters (Hu et al. 2021, Eq. 3), or ``W`` where there are none.

    The sum is float32 at least: in 16 bits most of what a small adapter changes is less than half of W's last digit.

    Args:
        module: A linear or embedding layer, or peft's wrapper of one.
    """
    weight = base_layer(module).weight
    assert isinstance(weight, Tensor)
    for adapter in _acting(module):
        wide = torch.promote_types(weight.dtype, torch.float32)
        weight = weight.to(wide) + module.get_delta_weight(adapter).to(wide)  # type: ignore[operator]
    return weight


def low_rank_parts(module: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """(r, K) ``A`` and (N, r) ``scale·B`` of each adapter that acts on a linear layer; none where none does."""
    lora: Any = module
    return [(lora.lora_A[name].weight, lora.lora_B[name].weight * lora.scaling[name]) for name in _acting(module)]


def base_layer(module: nn.Module) -> nn.Module:
    """The layer under peft's wrapper, or the layer itself."""
    return module.get_base_layer() if _is_adapted(module) else module  # type: ignore[operator]


def _acting(module: nn.Module) -> list[str]:
    """Names of the adapters that change what a layer gives."""
    if not _is_adapted(module) or module.disable_adapters or module.merged:
        return []
    known = {*module.lora_A, *module.lora_embedding_A}  # type: ignore[misc]
    return [name for name in module.active_adapters if name in known]  # type: ignore[union-attr]


def _is_adapted(module: nn.Module) -> bool:
    return "base_layer" in module._modules or "modules_to_save" in module._modules


def _is_plain_lora(module: nn.Module) -> bool:
    variants = getattr(module, "lora_variant", None)
    of_weight = getattr(module, "parameter_name", "weight") == "weight"  # of experts' own parameters it is another
    return hasattr(module, "lora_A") and hasattr(module, "get_delta_weight") and not variants and of_weight
