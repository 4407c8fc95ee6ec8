"""OPO: the baseline of least variance, on policy."""

from __future__ import annotations

from rlhf_lightning.advantages._sequence import sequence_rewards, spread
from rlhf_lightning.functional import length_weighted_center
from rlhf_lightning.protocols import AdvantageEstimator
from rlhf_lightning.registry import register
from rlhf_lightning.types import Advantages, TokenRewards


@register("advantage", "opo")
class OPO(AdvantageEstimator):
    """``A_i = R_i − Σ_j |y_j| R_j / Σ_j |y_j|`` over the group (Hao et al., arXiv 2505.23585).

    The paper trains strictly on policy (``updates_per_rollout: 1``) and without a KL term.
    """

    min_group_size = 2
    invariant_to = frozenset({"shift"})

    def __call__(self, rewards: TokenRewards) -> Advantages:
        """Takes the length-weighted mean off."""
        per_sequence = sequence_rewards(rewards)
        lengths = rewards.mask.sum(dim=1)
        return spread(length_weighted_center(per_sequence, lengths, group_size=rewards.group_size), rewards)
