"""Group-relative advantages."""

from __future__ import annotations

from rlhf_lightning.advantages._sequence import sequence_rewards, spread
from rlhf_lightning.functional import group_center, group_normalize, leave_one_out
from rlhf_lightning.protocols import AdvantageEstimator
from rlhf_lightning.registry import register
from rlhf_lightning.types import Advantages, TokenRewards


@register("advantage", "group")
class Group(AdvantageEstimator):
    """GRPO: ``A = (R − mean(R)) / (std(R) + eps)`` over the group, on every token (DeepSeekMath, Eq. 3 and §4.1.2).

    Args:
        eps: Added to the standard deviation.
    """

    min_group_size = 2
    invariant_to = frozenset({"shift", "scale"})

    def __init__(self, eps: float = 1e-6) -> None:
        self.eps = eps

    def __call__(self, rewards: TokenRewards) -> Advantages:
        """Normalizes each group; equal rewards give 0."""
        return spread(group_normalize(sequence_rewards(rewards), group_size=rewards.group_size, eps=self.eps), rewards)


@register("advantage", "group_center")
class GroupCenter(AdvantageEstimator):
    """Dr. GRPO: ``A = R − mean(R)`` over the group (Liu et al. 2025, "Understanding R1-Zero-like training").

    The division by the standard deviation is left out. Its other half, a constant in place of the response length, is
    ``aggregation: constant`` or ``seq-mean-token-sum``.
    """

    min_group_size = 2
    invariant_to = frozenset({"shift"})

    def __call__(self, rewards: TokenRewards) -> Advantages:
        """Centers each group."""
        return spread(group_center(sequence_rewards(rewards), group_size=rewards.group_size), rewards)


@register("advantage", "rloo")
class RLOO(AdvantageEstimator):
    """REINFORCE leave-one-out: ``A_i = R_i − mean of the others' R`` (Ahmadian et al. 2024, Eq. 8)."""

    min_group_size = 2
    invariant_to = frozenset({"shift"})

    def __call__(self, rewards: TokenRewards) -> Advantages:
        """Takes the others' mean off."""
        return spread(leave_one_out(sequence_rewards(rewards), group_size=rewards.group_size), rewards)
