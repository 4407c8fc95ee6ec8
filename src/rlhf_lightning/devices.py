"""Moves the values of the flow between devices, and finds devices by name."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from rlhf_lightning.errors import ConfigError


def to_device(value: Any, device: torch.device) -> Any:
    """Moves a tensor, or the tensors of a (nested) dataclass or dict; anything else is given back as it is."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {name: to_device(inner, device) for name, inner in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        return dataclasses.replace(value, **{name: to_device(field, device) for name, field in fields.items()})
    return value


def find_device(wanted: str) -> torch.device:
    """The device of that name; ``auto`` is a GPU if there is one.

    Raises:
        ConfigError: If there is no such device.
    """
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(wanted)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device: {wanted!r} cannot be used: {str(error).splitlines()[0]}") from error
    return device
