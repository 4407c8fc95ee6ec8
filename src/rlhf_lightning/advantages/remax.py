"""ReMax: the greedy response's reward as the baseline."""

from __future__ import annotations

from rlhf_lightning.functional import discounted_returns
from rlhf_lightning.protocols import AdvantageEstimator
from rlhf_lightning.registry import register
from rlhf_lightning.types import Advantages, TokenRewards


@register("advantage", "remax")
class ReMax(AdvantageEstimator):
    """``A_t = Σ_{s≥t} r_s − r(greedy response)`` (Li et al., arXiv 2310.10505, Algorithm 1).

    Costs one greedy response a prompt and rollout, scored and transformed like the samples. One sample a prompt is
    enough. Subtracting a number of the prompt alone leaves the gradient unbiased.
    """

    needs_prompt_baseline = True

    def __call__(self, rewards: TokenRewards) -> Advantages:
        """Takes the greedy response's reward off.

        Raises:
            ValueError: If there is none.
        """
        if rewards.prompt_baseline is None:
            raise ValueError("advantage remax: TokenRewards.prompt_baseline is missing")
        returns = discounted_returns(rewards.values, rewards.mask, gamma=1.0)
        baseline = rewards.prompt_baseline.to(returns).repeat_interleave(rewards.group_size)
        return Advantages((returns - baseline[:, None]) * rewards.mask)
