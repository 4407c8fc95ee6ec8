"""Losses a token at a time: the policy's surrogate objective, and the critic's."""

from rlhf_lightning.losses.cispo import CISPO
from rlhf_lightning.losses.clip import Clip
from rlhf_lightning.losses.clip_cov import ClipCov
from rlhf_lightning.losses.gspo import GSPO
from rlhf_lightning.losses.importance import Importance
from rlhf_lightning.losses.kl_cov import KLCov
from rlhf_lightning.losses.value import ClippedValue

__all__ = ["CISPO", "GSPO", "Clip", "ClipCov", "ClippedValue", "Importance", "KLCov"]
