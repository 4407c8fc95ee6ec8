"""What losses share: the ratio's diagnostics, the check of its bounds, and how many tokens a share of them is."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rlhf_lightning.errors import ConfigError


def ratio_diagnostics(log_ratio: Tensor, advantages: Tensor, low: float, high: float) -> dict[str, Tensor]:
    """The ratio, and where it stands outside its bounds on the side that its advantage pushes to."""
    ratio = torch.exp(log_ratio.detach())
    return {
        "ratio/mean": ratio,
        "ratio/clipped_low": ((ratio < 1 - low) & (advantages < 0)).float(),
        "ratio/clipped_high": ((ratio > 1 + high) & (advantages > 0)).float(),
    }


def check_clip(name: str, low: float, high: float) -> None:
    """Refuses bounds that cannot be.

    Raises:
        ConfigError: Naming the loss and the ranges.
    """
    if not 0 < low < 1 or not high > 0:
        raise ConfigError(f"policy loss {name}: low must be in (0, 1) and high above 0, got {low} and {high}")


def share_of(mask: Tensor, share: float) -> int:
    """``⌊share·N⌋`` of the N counted tokens; 1 where that is none, so that small updates have their share too."""
    return max(math.floor(share * int(mask.sum())), 1) if share > 0 else 0
