"""CISPO: clipped importance weights on the policy gradient."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from rlhf_lightning.errors import ConfigError
from rlhf_lightning.functional import cispo_loss
from rlhf_lightning.protocols import PolicyLoss
from rlhf_lightning.registry import register
from rlhf_lightning.types import UpdateBatch


@register("policy_loss", "cispo")
class CISPO(PolicyLoss):
    """``−sg(clip(ρ, 1 − low, 1 + high))·A·log π`` a token: no token loses its gradient (MiniMax-M1, arXiv 2506.13585).

    The value of this loss says nothing; only its gradient does. ``ratio/clipped_*`` count all tokens whose weight is at
    a bound, whatever their advantage.

    Args:
        low: How far the weight may fall below 1, in (0, 1]; 1 is no bound, as in the paper.
        high: How far it may rise above 1. The paper does not print its value; 4 is ours.
    """

    def __init__(self, low: float = 1.0, high: float = 4.0) -> None:
        if not 0 < low <= 1 or not high > 0:
            raise ConfigError(f"policy loss cispo: low must be in (0, 1] and high above 0, got {low} and {high}")
        self.low, self.high = low, high

    def __call__(self, new: Tensor, batch: UpdateBatch) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The loss, and the ratio with where it was clipped."""
        loss = cispo_loss(new, batch.old_logprobs, batch.advantages, clip_low=self.low, clip_high=self.high)
        ratio = torch.exp(new.detach() - batch.old_logprobs)
        return loss, {
            "ratio/mean": ratio,
            "ratio/clipped_low": (ratio < 1 - self.low).float(),
            "ratio/clipped_high": (ratio > 1 + self.high).float(),
        }
