"""Importance correction between sampler and trainer, around any policy loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from rlhf_lightning.errors import ConfigError
from rlhf_lightning.functional import IMPORTANCE_LEVELS, IMPORTANCE_MODES, importance_log_weights, limit_weights
from rlhf_lightning.losses.clip import Clip
from rlhf_lightning.protocols import PolicyLoss
from rlhf_lightning.registry import check_choice, filled, register
from rlhf_lightning.types import UpdateBatch


@register("policy_loss", "importance")
class Importance(PolicyLoss):
    """Another loss times ``w = π_trainer/π_sampler``, truncated or masked, a token or a sequence (TIS, MIS, IcePop).

    ``π_trainer`` is the policy before the update at the trainer's precision, ``π_sampler`` what was really drawn from:
    another dtype, engine, or a cut support. Where both are the same nothing changes. A rollout's raw ratios are logged
    as ``importance/*`` (quantiles, effective sample share) whatever the loss. Masked tokens still count in the
    aggregation's denominator.

    Args:
        loss: The loss that is weighted; ``clip`` when not given.
        level: ``token``: each token's ratio. ``sequence``: the product over the response, on each of its tokens.
            ``geometric``: the product's |y|-th root.
        mode: ``truncate`` holds w within the bounds, ``mask`` makes it 0 outside.
        low: Lower bound of w; 0 is none.
        high: Upper bound of w, above 0.
    """

    corrects_sampler = True
    config_defaults: ClassVar[dict[str, Any]] = {"loss": Clip}

    def __init__(
        self,
        loss: PolicyLoss | None = None,
        level: Literal["token", "sequence", "geometric"] = "token",
        mode: Literal["truncate", "mask"] = "truncate",
        low: float = 0.0,
        high: float = 2.0,
    ) -> None:
        check_choice(level, IMPORTANCE_LEVELS, "policy loss importance: level")
        check_choice(mode, IMPORTANCE_MODES, "policy loss importance: mode")
        if not 0 <= low <= 1 <= high:
            raise ConfigError(
                "policy loss importance: low must be in [0, 1] and high at least 1, so that equal distributions keep "
                f"their weight of 1; got {low} and {high}"
            )
        self.loss = filled(type(self), loss=loss)["loss"]
        self.needs_moved_policy = self.loss.needs_moved_policy
        self.level, self.mode, self.low, self.high = level, mode, low, high

    def mark(self, old: Tensor, advantages: Tensor, mask: Tensor, *, seed: int) -> Tensor | None:
        """As the loss inside."""
        return self.loss.mark(old, advantages, mask, seed=seed)

    def __call__(self, new: Tensor, batch: UpdateBatch) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The weighted loss; to the loss's own diagnostics, the weight used and which tokens it was cut on."""
        loss, diagnostics = self.loss(new, batch)
        raw = self._raw_weights(batch)
        weights = limit_weights(raw, mode=self.mode, low=self.low, high=self.high)
        cut = (weights != raw).float()
        return loss * weights, {**diagnostics, "importance/weight": weights, "importance/cut": cut}

    def _raw_weights(self, batch: UpdateBatch) -> Tensor:
        old, mask = batch.old_logprobs, batch.packed.mask
        sampler = old if batch.sampler_logprobs is None else batch.sampler_logprobs
        return torch.exp(importance_log_weights(old, sampler, mask, level=self.level))
