"""REINFORCE: the return itself."""

from __future__ import annotations

from rlhf_lightning.errors import ConfigError
from rlhf_lightning.functional import discounted_returns
from rlhf_lightning.protocols import AdvantageEstimator
from rlhf_lightning.registry import register
from rlhf_lightning.types import Advantages, TokenRewards


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
