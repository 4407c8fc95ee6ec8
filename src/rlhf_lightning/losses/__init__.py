"""Losses a token at a time: the policy's surrogate objective, and the critic's."""

from rlhf_lightning.losses.clip import Clip
from rlhf_lightning.losses.value import ClippedValue

__all__ = ["Clip", "ClippedValue"]
