"""Whitening over the whole rollout."""

from __future__ import annotations

from dataclasses import replace

import torch

from rlhf_lightning.functional import masked_whiten
from rlhf_lightning.protocols import RewardTransform
from rlhf_lightning.registry import register
from rlhf_lightning.types import Rewards


@register("reward_transform", "whiten")
class Whiten(RewardTransform):
    """``r ← (r − mean) / std`` over all B rewards of the rollout.

    Args:
        shift_mean: Whether the mean is taken off; without it only the scale changes.
    """

    name = "whiten"
    compares = True

    def __init__(self, shift_mean: bool = True) -> None:
        self.shift_mean = shift_mean
        # with the mean put back, a shift passes through, and a change of scale changes that mean
        self.invariant_to = frozenset({"rollout shift", "rollout scale"} if shift_mean else ())
        self.only = frozenset({"rollout shift", "rollout scale"})

    def __call__(self, rewards: Rewards) -> Rewards:
        """Whitens; see :func:`rlhf_lightning.functional.masked_whiten`."""
        everything = torch.ones_like(rewards.values, dtype=torch.bool)
        return replace(rewards, values=masked_whiten(rewards.values, everything, shift_mean=self.shift_mean))
