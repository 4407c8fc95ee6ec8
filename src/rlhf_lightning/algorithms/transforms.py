"""Reward transforms: the visible steps between a raw score and the reward, in the order the configuration gives."""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from rlhf_lightning.errors import ConfigError
from rlhf_lightning.functional import asymmetric_shrink, clip_rewards, group_normalize, masked_whiten, soft_overlong
from rlhf_lightning.protocols import RewardTransform
from rlhf_lightning.registry import register
from rlhf_lightning.types import Rewards


@register("reward_transform", "clip")
class ClipRewards(RewardTransform):
    """Limits each reward to ``[low, high]``.

    The paper clips raw rewards before it normalizes them and does not give the range; ±10 is OpenRLHF's default.
    After :class:`~rlhf_lightning.algorithms.transforms.GroupNormalize`, whose rewards are within
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
