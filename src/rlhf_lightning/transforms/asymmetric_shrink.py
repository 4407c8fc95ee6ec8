"""Asymmetric reward shrinking (paper, §3.2)."""

from __future__ import annotations

import math
from dataclasses import replace

from rlhf_lightning.errors import ConfigError
from rlhf_lightning.functional import asymmetric_shrink
from rlhf_lightning.protocols import RewardTransform
from rlhf_lightning.registry import register
from rlhf_lightning.types import Rewards


@register("reward_transform", "asymmetric_shrink")
class AsymmetricShrink(RewardTransform):
    """``r ← α·r`` where ``r < 0``, else ``r`` (paper, §3.2): softer negative gradients without a critic.

    Put it after normalization, and take an advantage that does not centre again (``reinforce``): others take back what
    it does. The paper gives only ``α < 1``; the default 0.5 is ours.

    Args:
        alpha: Factor on negative rewards, in [0, 1]; 1 changes nothing.
    """

    name = "asymmetric_shrink"
    unbalances = True
    idle_within = (0.0, math.inf)

    def __init__(self, alpha: float = 0.5) -> None:
        if not 0.0 <= alpha <= 1.0:
            raise ConfigError(f"reward transform asymmetric_shrink: alpha must be in [0, 1], got {alpha}")
        self.alpha = alpha

    def __call__(self, rewards: Rewards) -> Rewards:
        """Shrinks; see :func:`rlhf_lightning.functional.asymmetric_shrink`."""
        return replace(rewards, values=asymmetric_shrink(rewards.values, alpha=self.alpha))
