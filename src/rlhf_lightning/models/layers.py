"""The repeated layers of a model."""

from __future__ import annotations

from torch import nn


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """The modules of the longest list of modules in a model: its decoder layers, under adapters too.

    Raises:
        ValueError: If there is no list of modules.
    """
    lists = [list(module) for module in model.modules() if isinstance(module, nn.ModuleList)]
    if not lists:
        raise ValueError(f"{type(model).__name__} has no list of layers")
    return max(lists, key=len)
