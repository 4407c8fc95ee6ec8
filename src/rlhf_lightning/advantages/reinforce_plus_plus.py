"""REINFORCE++: advantages whitened over the whole rollout instead of within a group."""

from __future__ import annotations

from dataclasses import replace

from rlhf_lightning.advantages._sequence import sequence_rewards, spread
from rlhf_lightning.functional import discounted_returns, group_center, masked_whiten
from rlhf_lightning.protocols import AdvantageEstimator
from rlhf_lightning.registry import register
from rlhf_lightning.types import Advantages, TokenRewards


def _whitened(advantages: Advantages, rewards: TokenRewards) -> Advantages:
    return replace(advantages, values=masked_whiten(advantages.values, rewards.mask))


@register("advantage", "reinforce_plus_plus")
class ReinforcePlusPlus(AdvantageEstimator):
    """REINFORCE++: ``A_t = Σ_{s≥t} r_s``, whitened over all tokens of the rollout (Hu et al., arXiv 2501.03262, §3).

    With ``kl_reward: {estimator: k1}`` the sum holds the paper's token-level KL penalty; without, every token of a
    response has its reward. The paper's clipped loss is ``policy_loss: clip``.
    """

    invariant_to = frozenset({"rollout shift", "rollout scale"})

    def __call__(self, rewards: TokenRewards) -> Advantages:
        """Sums what is still to come, and whitens."""
        return _whitened(Advantages(discounted_returns(rewards.values, rewards.mask, gamma=1.0)), rewards)


@register("advantage", "reinforce_plus_plus_baseline")
class ReinforcePlusPlusBaseline(AdvantageEstimator):
    """REINFORCE++-baseline: ``R − mean(R)`` over the group, whitened over all tokens (Hu et al., arXiv 2501.03262).

    The group's mean takes the place of a critic, and the standard deviation is the rollout's, not the group's. The
    paper's KL penalty here is ``kl_loss: {estimator: k2}``.
    """

    min_group_size = 2
    invariant_to = frozenset({"shift", "rollout scale"})

    def __call__(self, rewards: TokenRewards) -> Advantages:
        """Centers each group, and whitens."""
        centered = group_center(sequence_rewards(rewards), group_size=rewards.group_size)
        return _whitened(spread(centered, rewards), rewards)
