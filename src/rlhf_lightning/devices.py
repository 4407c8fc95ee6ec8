"""Moves the values of the flow between devices."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor


def to_device(value: Any, device: torch.device) -> Any:
    """Moves a tensor, or the tensors of a (nested) dataclass; anything else is given back as it is."""
    if isinstance(value, Tensor):
        return value.to(device)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        return dataclasses.replace(value, **{name: to_device(field, device) for name, field in fields.items()})
    return value
