"""Clip-Cov: a few tokens that would drive entropy down get no gradient."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from rlhf_lightning.errors import ConfigError
from rlhf_lightning.functional import clip_cov_loss, random_marks, token_covariance
from rlhf_lightning.losses._ratio import check_clip, ratio_diagnostics, share_of
from rlhf_lightning.protocols import PolicyLoss
from rlhf_lightning.registry import register
from rlhf_lightning.types import UpdateBatch


@register("policy_loss", "clip_cov")
class ClipCov(PolicyLoss):
    """Clip, and no gradient on ``max(⌊share·N⌋, 1)`` random tokens of high covariance (Cui et al., arXiv 2505.22617).

    A token's covariance is ``(log π − mean)(A − mean)`` over the N tokens of an update. The paper takes log π of the
    policy being trained; ours is of the one before the update, so that the choice is made once for the whole update
    and does not depend on how it is cut into micro-batches. As in its code, small updates have one token chosen. Where
    no token's covariance is within the bounds there is none to choose: ``covariance/marked`` then is 0, and the loss is
    ``clip``.

    Args:
        share: r, the share of an update's tokens, in [0, 1]; 0 chooses none.
        cov_low: Least covariance of the tokens to choose from.
        cov_high: Largest.
        low: How far the ratio may fall below 1.
        high: How far it may rise above 1.
    """

    def __init__(
        self, share: float = 2e-4, cov_low: float = 1.0, cov_high: float = 5.0, low: float = 0.2, high: float = 0.2
    ) -> None:
        check_clip("clip_cov", low, high)
        if not 0 <= share <= 1:
            raise ConfigError(f"policy loss clip_cov: share must be in [0, 1], got {share}")
        if not cov_low < cov_high:
            raise ConfigError(f"policy loss clip_cov: cov_low ({cov_low}) must be below cov_high ({cov_high})")
        self.share, self.cov_low, self.cov_high, self.low, self.high = share, cov_low, cov_high, low, high

    def mark(self, old: Tensor, advantages: Tensor, mask: Tensor, *, seed: int) -> Tensor:
        """The tokens that get no gradient."""
        covariance = token_covariance(old, advantages, mask)
        eligible = mask & (covariance >= self.cov_low) & (covariance <= self.cov_high)
        return random_marks(eligible, count=share_of(mask, self.share), seed=seed)

    def __call__(self, new: Tensor, batch: UpdateBatch) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The loss, the ratio, and which tokens were marked."""
        marks = torch.zeros_like(batch.packed.mask) if batch.marks is None else batch.marks
        loss = clip_cov_loss(new, batch.old_logprobs, batch.advantages, marks, clip_low=self.low, clip_high=self.high)
        diagnostics = ratio_diagnostics(new - batch.old_logprobs, batch.advantages, self.low, self.high)
        return loss, {**diagnostics, "covariance/marked": marks.float()}
