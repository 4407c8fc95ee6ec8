"""The critic's losses."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from rlhf_lightning.errors import ConfigError
from rlhf_lightning.functional import clipped_value_loss
from rlhf_lightning.protocols import ValueLoss
from rlhf_lightning.registry import register
from rlhf_lightning.types import UpdateBatch


@register("value_loss", "clipped")
class ClippedValue(ValueLoss):
    """``½ max((V − R)², (clip(V, V_old ± c) − R)²)`` a token (PPO's reference implementation; arXiv 2005.12729, §3).

    Args:
        clip: Largest step c of a value within a rollout, in the unit of the rewards; None is plain squared error.
            The default is OpenRLHF's of December 2024, when the paper was written.
    """

    def __init__(self, clip: float | None = 0.2) -> None:
        if clip is not None and clip <= 0:
            raise ConfigError(f"value loss clipped: clip must be above 0, or null for none, got {clip}")
        self.clip = clip

    def __call__(self, new: Tensor, batch: UpdateBatch) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The loss, and where the clipped value's error was the larger one, so that the value has no gradient."""
        if batch.old_values is None or batch.returns is None:
            raise ConfigError("value loss clipped: the batch has no critic values and returns; it is for PPOModule")
        loss = clipped_value_loss(new, batch.old_values, batch.returns, clip=self.clip)
        with torch.no_grad():
            held = loss > (new - batch.returns) ** 2 / 2
        return loss, {"value/clipped": held.float()}
