"""Reward clipping (paper, §3)."""

from __future__ import annotations

from dataclasses import replace

from rlhf_lightning.errors import ConfigError
from rlhf_lightning.functional import clip_rewards
from rlhf_lightning.protocols import RewardTransform
from rlhf_lightning.registry import register
from rlhf_lightning.types import Rewards


@register("reward_transform", "clip")
class Clip(RewardTransform):
    """Limits each reward to ``[low, high]``.

    The paper clips raw rewards before it normalizes them and does not give the range; ±10 is OpenRLHF's default.
    After :class:`~rlhf_lightning.transforms.group_normalize.GroupNormalize`, whose rewards are within
    ``±√(samples_per_prompt − 1)``, a range this wide cuts nothing, and is refused.

    Args:
        low: Lower limit.
        high: Upper limit.
    """

    name = "clip"

    def __init__(self, low: float = -10.0, high: float = 10.0) -> None:
        if not low < high:
            raise ConfigError(f"reward transform clip: low ({low}) must be below high ({high})")
        self.low, self.high = low, high
        self.idle_within = (low, high)

    def bounds(self, group_size: int) -> tuple[float, float]:
        """Its limits."""
        return self.low, self.high

    def __call__(self, rewards: Rewards) -> Rewards:
        """Clips; see :func:`rlhf_lightning.functional.clip_rewards`."""
        return replace(rewards, values=clip_rewards(rewards.values, low=self.low, high=self.high))
