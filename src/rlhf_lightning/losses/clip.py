"""The clipped surrogate (paper, Eq. 4)."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from rlhf_lightning.errors import ConfigError
from rlhf_lightning.functional import clipped_policy_loss
from rlhf_lightning.losses._ratio import check_clip, ratio_diagnostics
from rlhf_lightning.protocols import PolicyLoss
from rlhf_lightning.registry import register
from rlhf_lightning.types import UpdateBatch


@register("policy_loss", "clip")
class Clip(PolicyLoss):
    """``−min(ρ·A, clip(ρ, 1 − low, 1 + high)·A)`` a token, ``ρ = exp(new − old)`` (PPO; paper, Eq. 4).

    DAPO (arXiv 2503.14476) is this loss with ``low: 0.2, high: 0.28``, ``aggregation: token-mean``, the reward
    transform ``soft_overlong`` and the sampler ``dynamic``; see ``configs/tiny/dapo.yaml``.

    Args:
        low: How far the ratio may fall below 1.
        high: How far it may rise above 1; more than ``low`` is DAPO's "clip higher".
        dual_clip: Upper limit c > 1 on ``−loss`` for negative advantages, at ``c·A`` (Ye et al. 2020); None is off.
    """

    def __init__(self, low: float = 0.2, high: float = 0.2, dual_clip: float | None = None) -> None:
        check_clip("clip", low, high)
        if dual_clip is not None and dual_clip <= 1:
            raise ConfigError(f"policy loss clip: dual_clip must be above 1, got {dual_clip}")
        self.low, self.high, self.dual_clip = low, high, dual_clip

    def __call__(self, new: Tensor, batch: UpdateBatch) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The loss, and the ratio with where it was clipped."""
        loss = clipped_policy_loss(
            new,
            batch.old_logprobs,
            batch.advantages,
            clip_low=self.low,
            clip_high=self.high,
            dual_clip=self.dual_clip,
        )
        return loss, ratio_diagnostics(new - batch.old_logprobs, batch.advantages, self.low, self.high)
