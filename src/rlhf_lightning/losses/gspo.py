"""GSPO: the ratio of whole responses."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from rlhf_lightning.functional import sequence_log_ratio, sequence_policy_loss
from rlhf_lightning.losses._ratio import check_clip, ratio_diagnostics
from rlhf_lightning.protocols import PolicyLoss
from rlhf_lightning.registry import register
from rlhf_lightning.types import UpdateBatch


@register("policy_loss", "gspo")
class GSPO(PolicyLoss):
    """``−min(s·A, clip(s, 1 − low, 1 + high)·A)``, ``s = (π(y)/π_old(y))^(1/|y|)`` (Zheng et al., arXiv 2507.18071).

    In the paper's GSPO-token form (§4.3), which is the same where a response has one advantage and allows others. The
    paper averages responses: ``aggregation: seq-mean-token-mean``. Its bounds are tiny, since s hardly moves.

    Args:
        low: How far s may fall below 1.
        high: How far it may rise above 1.
    """

    def __init__(self, low: float = 3e-4, high: float = 4e-4) -> None:
        check_clip("gspo", low, high)
        self.low, self.high = low, high

    def __call__(self, new: Tensor, batch: UpdateBatch) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The loss, and s with where it was clipped."""
        old, advantages, mask = batch.old_logprobs, batch.advantages, batch.packed.mask
        loss = sequence_policy_loss(new, old, advantages, mask, clip_low=self.low, clip_high=self.high)
        log_s = sequence_log_ratio(new.detach(), old, mask, normalize=True)[:, None].expand_as(new)
        return loss, ratio_diagnostics(log_s, advantages, self.low, self.high)
