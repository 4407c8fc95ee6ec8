"""Reward transforms: the visible steps between a raw score and the reward, in the order the configuration gives."""

from rlhf_lightning.transforms.asymmetric_shrink import AsymmetricShrink
from rlhf_lightning.transforms.clip import Clip
from rlhf_lightning.transforms.group_normalize import GroupNormalize
from rlhf_lightning.transforms.length_penalty import LengthPenalty, MissingEosPenalty
from rlhf_lightning.transforms.soft_overlong import SoftOverlong
from rlhf_lightning.transforms.whiten import Whiten

__all__ = ["AsymmetricShrink", "Clip", "GroupNormalize", "LengthPenalty", "MissingEosPenalty", "SoftOverlong", "Whiten"]
