"""Advantage estimators: from token rewards to what the policy loss multiplies the ratio with."""

from rlhf_lightning.advantages.gae import GAE
from rlhf_lightning.advantages.group import RLOO, Group, GroupCenter
from rlhf_lightning.advantages.reinforce import Reinforce

__all__ = ["GAE", "RLOO", "Group", "GroupCenter", "Reinforce"]
