"""Finds devices by name."""

from __future__ import annotations

import torch

from rlhf_lightning.errors import ConfigError


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
