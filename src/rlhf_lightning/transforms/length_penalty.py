"""Penalties on the form of a response: its length, and a missing end."""

from __future__ import annotations

from dataclasses import replace

from rlhf_lightning.errors import ConfigError
from rlhf_lightning.protocols import RewardTransform
from rlhf_lightning.registry import register
from rlhf_lightning.types import Rewards


@register("reward_transform", "length_penalty")
class LengthPenalty(RewardTransform):
    """``r ← r − c · max(0, length − free)``, length in tokens.

    Args:
        per_token: c, reward units a token.
        free_tokens: Length up to which nothing is taken off.
    """

    name = "length_penalty"

    def __init__(self, per_token: float = 0.001, free_tokens: int = 0) -> None:
        if per_token < 0 or free_tokens < 0:
            raise ConfigError(
                f"reward transform length_penalty: per_token ({per_token}) and free_tokens ({free_tokens}) "
                "must not be negative"
            )
        self.per_token, self.free_tokens = per_token, free_tokens
        self.acts_beyond = free_tokens

    def __call__(self, rewards: Rewards) -> Rewards:
        """Takes the penalty off."""
        excess = (rewards.lengths - self.free_tokens).clamp(min=0)
        return replace(rewards, values=rewards.values - self.per_token * excess.to(rewards.values.dtype))


@register("reward_transform", "missing_eos_penalty")
class MissingEosPenalty(RewardTransform):
    """``r ← r − c`` where the response was cut off before it ended by itself.

    Args:
        penalty: c, in reward units (1.0 is what TRL's examples use).
    """

    name = "missing_eos_penalty"
    only_cut_off = True

    def __init__(self, penalty: float = 1.0) -> None:
        if penalty < 0:
            raise ConfigError(f"reward transform missing_eos_penalty: penalty must not be negative, got {penalty}")
        self.penalty = penalty

    def __call__(self, rewards: Rewards) -> Rewards:
        """Takes the penalty off."""
        cut_off = (~rewards.finished).to(rewards.values.dtype)
        return replace(rewards, values=rewards.values - self.penalty * cut_off)
