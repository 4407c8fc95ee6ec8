"""KL-Cov: the few tokens that drive entropy down most are held back."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from rlhf_lightning.errors import ConfigError
from rlhf_lightning.functional import kl_cov_loss, largest_marks, token_covariance
from rlhf_lightning.losses._ratio import share_of
from rlhf_lightning.protocols import PolicyLoss
from rlhf_lightning.registry import register
from rlhf_lightning.types import UpdateBatch


@register("policy_loss", "kl_cov")
class KLCov(PolicyLoss):
    """``−ρ·A``, and a KL penalty on the ``max(⌊share·N⌋, 1)`` tokens of largest covariance (Cui et al., 2505.22617).

    Covariances as in ``clip_cov``, once for the whole update. There is no clip. The penalty acts only once the policy
    has moved: with one update a rollout it does nothing.

    Args:
        share: k, the share of an update's tokens, in [0, 1]; 0 chooses none. The paper has 2e-3 for 7B and 2e-4 for
            32B; as in its code, small updates have one token chosen.
        beta: Weight of the penalty, not negative.
    """

    needs_moved_policy = True

    def __init__(self, share: float = 2e-3, beta: float = 1.0) -> None:
        if not 0 <= share <= 1:
            raise ConfigError(f"policy loss kl_cov: share must be in [0, 1], got {share}")
        if beta < 0:
            raise ConfigError(f"policy loss kl_cov: beta must not be negative, got {beta}")
        self.share, self.beta = share, beta

    def mark(self, old: Tensor, advantages: Tensor, mask: Tensor, *, seed: int) -> Tensor:
        """The tokens that are held back."""
        covariance = token_covariance(old, advantages, mask)
        return largest_marks(covariance, mask, count=share_of(mask, self.share))

    def __call__(self, new: Tensor, batch: UpdateBatch) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The loss, the ratio, and which tokens were marked."""
        marks = torch.zeros_like(batch.packed.mask) if batch.marks is None else batch.marks
        loss = kl_cov_loss(new, batch.old_logprobs, batch.advantages, marks, beta=self.beta)
        ratio = torch.exp(new.detach() - batch.old_logprobs)
        return loss, {"ratio/mean": ratio, "covariance/marked": marks.float()}
