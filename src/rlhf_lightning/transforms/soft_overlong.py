"""DAPO's soft punishment of overlong responses."""

from __future__ import annotations

from dataclasses import replace

from rlhf_lightning.errors import ConfigError
from rlhf_lightning.functional import soft_overlong
from rlhf_lightning.protocols import RewardTransform
from rlhf_lightning.registry import register
from rlhf_lightning.types import Rewards


@register("reward_transform", "soft_overlong")
class SoftOverlong(RewardTransform):
    """``r ← r + c · clip((max_length − buffer − |y|) / buffer, −1, 0)`` (DAPO, arXiv 2503.14476, Eq. 13).

    Args:
        max_length: Length in tokens from which the punishment is full; usually the sampler's ``max_new_tokens``.
        buffer: Tokens before it over which the punishment grows. DAPO has 4096 of 20480.
        penalty: c, the full punishment in reward units; DAPO's is 1, with rewards of 1 and −1.
    """

    name = "soft_overlong"

    def __init__(self, max_length: int, buffer: int, penalty: float = 1.0) -> None:
        if not 1 <= buffer <= max_length:
            raise ConfigError(
                f"reward transform soft_overlong: buffer must be in [1, max_length = {max_length}], got {buffer}"
            )
        if penalty < 0:
            raise ConfigError(f"reward transform soft_overlong: penalty must not be negative, got {penalty}")
        self.max_length, self.buffer, self.penalty = max_length, buffer, penalty
        self.acts_beyond = max_length - buffer

    def __call__(self, rewards: Rewards) -> Rewards:
        """Adds the punishment; see :func:`rlhf_lightning.functional.soft_overlong`."""
        punishment = soft_overlong(rewards.lengths, max_length=self.max_length, buffer=self.buffer)
        return replace(rewards, values=rewards.values + self.penalty * punishment.to(rewards.values))
