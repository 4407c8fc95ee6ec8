"""Generalised advantage estimation, with a critic's values."""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf_lightning.errors import ConfigError
from rlhf_lightning.functional import gae, masked_whiten
from rlhf_lightning.protocols import AdvantageEstimator
from rlhf_lightning.registry import register
from rlhf_lightning.types import Advantages, TokenRewards


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
        return Advantages(_whitened(values, rewards.mask) if self.whiten else values, returns)


def _whitened(values: Tensor, mask: Tensor) -> Tensor:
    finite = values.isfinite()
    return torch.where(finite, masked_whiten(values, mask & finite), values)
