"""Policy losses: the surrogate objective, a token at a time."""

from rlhf_lightning.losses.cispo import CISPO
from rlhf_lightning.losses.clip import Clip
from rlhf_lightning.losses.clip_cov import ClipCov
from rlhf_lightning.losses.gspo import GSPO
from rlhf_lightning.losses.importance import Importance
from rlhf_lightning.losses.kl_cov import KLCov

__all__ = ["CISPO", "GSPO", "Clip", "ClipCov", "Importance", "KLCov"]
