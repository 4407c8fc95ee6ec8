"""Advantage estimators: from token rewards to what the policy loss multiplies the ratio with."""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf_lightning.errors import ConfigError
from rlhf_lightning.functional import (
    discounted_returns,
    gae,
    group_center,
    group_normalize,
    leave_one_out,
    length_weighted_center,
    masked_whiten,
    process_advantages,
)
from rlhf_lightning.protocols import AdvantageEstimator
from rlhf_lightning.registry import register
from rlhf_lightning.types import Advantages, TokenRewards


def sequence_rewards(rewards: TokenRewards) -> Tensor:
    """(B,) sum of each sequence's token rewards (the response's reward, less its KL penalty where there is one)."""
    return (rewards.values * rewards.mask).sum(dim=1)


def per_token(per_sequence: Tensor, rewards: TokenRewards) -> Advantages:
    """Gives every token of a sequence the sequence's advantage."""
    return Advantages(values=per_sequence[:, None] * rewards.mask)


@register("advantage", "reinforce")
class Reinforce(AdvantageEstimator):
    """``A_t = Σ_{s≥t} γ^{s−t} r_s`` (Williams 1992).

    With ``gamma = 1`` and no KL in the reward this is the paper's ``A_t = r`` (§3.2); its baseline then is the reward
    transform ``group_normalize``.

    Args:
        gamma: Discount a token, in [0, 1].
    """

    def __init__(self, gamma: float = 1.0) -> None:
        if not 0.0 <= gamma <= 1.0:
            raise ConfigError(f"advantage reinforce: gamma must be in [0, 1], got {gamma}")
        self.gamma = gamma

    def __call__(self, rewards: TokenRewards) -> Advantages:
        """Sums what is still to come."""
        return Advantages(values=discounted_returns(rewards.values, rewards.mask, gamma=self.gamma))


@register("advantage", "reinforce_plus_plus")
class ReinforcePlusPlus(AdvantageEstimator):
    """REINFORCE++: ``A_t = Σ_{s≥t} r_s``, whitened over all tokens of the rollout (Hu et al., arXiv 2501.03262, §3).

    With ``kl_reward: {estimator: k1}`` the sum holds the paper's token-level KL penalty; without, every token of a
    response has its reward. The paper's clipped loss is ``policy_loss: clip``.
    """

    invariant_to = frozenset({"rollout shift", "rollout scale"})

    def __call__(self, rewards: TokenRewards) -> Advantages:
        """Sums what is still to come, and whitens."""
        returns = discounted_returns(rewards.values, rewards.mask, gamma=1.0)
        return Advantages(masked_whiten(returns, rewards.mask))


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
        return Advantages(masked_whiten(per_token(centered, rewards).values, rewards.mask))


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
        return per_token(
            group_normalize(sequence_rewards(rewards), group_size=rewards.group_size, eps=self.eps), rewards
        )


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
        return per_token(group_center(sequence_rewards(rewards), group_size=rewards.group_size), rewards)


@register("advantage", "rloo")
class RLOO(AdvantageEstimator):
    """REINFORCE leave-one-out: ``A_i = R_i − mean of the others' R`` (Ahmadian et al. 2024, Eq. 8)."""

    min_group_size = 2
    invariant_to = frozenset({"shift"})

    def __call__(self, rewards: TokenRewards) -> Advantages:
        """Takes the others' mean off."""
        return per_token(leave_one_out(sequence_rewards(rewards), group_size=rewards.group_size), rewards)


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
        return per_token(length_weighted_center(per_sequence, lengths, group_size=rewards.group_size), rewards)


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


@register("advantage", "gae")
class GAE(AdvantageEstimator):
    """``A_t = Σ (γλ)^l δ_{t+l}``, ``δ_t = r_t + γ V_{t+1} − V_t`` (Schulman et al. 2016, Eq. 16), for a critic.

    The defaults are those of OpenRLHF in December 2024, which the paper trained with and whose values it does not
    print; later versions of OpenRLHF take ``lam = 1``.

    Args:
        gamma: Discount a token, in [0, 1].
        lam: lambda, in [0, 1]: 0 trusts the critic, 1 the sampled return.
        whiten: Scale the advantages to mean 0 and variance 1 over all tokens of the rollout, as a last step. The
            critic's targets are made before and stay in the unit of the rewards. Responses whose advantages are not
            finite keep them and are left out of the statistics, so that they spoil no update but their own.
    """

    needs_critic = True
    recenters = True
    reads_bootstrap = True

    def __init__(self, gamma: float = 1.0, lam: float = 0.95, whiten: bool = True) -> None:
        for name, value in {"gamma": gamma, "lam": lam}.items():
            if not 0.0 <= value <= 1.0:
                raise ConfigError(f"advantage gae: {name} must be in [0, 1], got {value}")
        self.gamma, self.lam, self.whiten = gamma, lam, whiten

    def __call__(self, rewards: TokenRewards) -> Advantages:
        """Advantages, and the returns that the critic is to foresee."""
        if rewards.baseline is None:
            raise ConfigError("advantage gae: there are no critic values; it is for PPOModule")
        settings = {"gamma": self.gamma, "lam": self.lam}
        values, returns = gae(rewards.values, rewards.baseline, rewards.mask, **settings, bootstrap=rewards.bootstrap)
        if self.whiten:
            finite = values.isfinite()
            values = torch.where(finite, masked_whiten(values, rewards.mask & finite), values)
        return Advantages(values, returns)
