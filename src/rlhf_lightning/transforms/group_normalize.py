"""Reward normalization within each prompt's group (paper, §3.2)."""

from __future__ import annotations

import math
from dataclasses import replace

from rlhf_lightning.functional import group_normalize
from rlhf_lightning.protocols import RewardTransform
from rlhf_lightning.registry import register
from rlhf_lightning.types import Rewards


@register("reward_transform", "group_normalize")
class GroupNormalize(RewardTransform):
    """``r_i ← (r_i − mean(r)) / std(r)`` over the responses to one prompt (paper, §3.2).

    A group whose rewards are all equal becomes 0, so a group of one does too.

    Args:
        eps: Added to the standard deviation.
    """

    name = "group_normalize"
    min_group_size = 2
    compares = True
    invariant_to = only = frozenset({"shift", "scale"})

    def __init__(self, eps: float = 1e-6) -> None:
        self.eps = eps

    def bounds(self, group_size: int) -> tuple[float, float]:
        """One of G rewards is at most ``√(G − 1)`` population deviations from their mean."""
        return -math.sqrt(group_size - 1), math.sqrt(group_size - 1)

    def __call__(self, rewards: Rewards) -> Rewards:
        """Normalizes; see :func:`rlhf_lightning.functional.group_normalize`."""
        return replace(rewards, values=group_normalize(rewards.values, group_size=rewards.group_size, eps=self.eps))
