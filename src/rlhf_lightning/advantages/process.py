"""GRPO with process supervision: step scores, from a process reward model say, drive the policy."""

from __future__ import annotations

from rlhf_lightning.errors import ConfigError
from rlhf_lightning.functional import process_advantages
from rlhf_lightning.protocols import AdvantageEstimator
from rlhf_lightning.registry import register
from rlhf_lightning.types import Advantages, TokenRewards


@register("advantage", "process")
class Process(AdvantageEstimator):
    """Step scores normalized over the group's steps; a token's ``A`` sums those that end from it on (DeepSeekMath).

    Shao et al., arXiv 2402.03300, §4.1.3. Needs a scorer that fills ``Scores.steps`` in: ``reward_model``, or
    ``remote`` for a served one, with a model trained with ``supervision: process`` (see
    ``configs/tiny/grpo_prm.yaml``). The responses' own rewards are not looked at, so ``reward_transforms`` and
    ``kl_reward`` would do nothing and are refused; ``kl_loss`` works.

    Args:
        eps: Added to the standard deviation.
    """

    min_group_size = 2
    reads_rewards = False

    def __init__(self, eps: float = 1e-6) -> None:
        if eps < 0:
            raise ConfigError(f"advantage process: eps must not be negative, got {eps}")
        self.eps = eps

    def __call__(self, rewards: TokenRewards) -> Advantages:
        """Normalizes and sums.

        Raises:
            ConfigError: If no scorer gave step scores.
        """
        if rewards.steps is None:
            raise ConfigError("advantage process: none of the scorers gives step scores (Scores.steps)")
        steps, size = rewards.steps, rewards.group_size
        return Advantages(process_advantages(steps.values, steps.ends, rewards.mask, group_size=size, eps=self.eps))
