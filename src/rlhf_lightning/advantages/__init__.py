"""Advantage estimators: from token rewards to what the policy loss multiplies the ratio with."""

from rlhf_lightning.advantages.gae import GAE
from rlhf_lightning.advantages.group import RLOO, Group, GroupCenter
from rlhf_lightning.advantages.opo import OPO
from rlhf_lightning.advantages.process import Process
from rlhf_lightning.advantages.reinforce import Reinforce
from rlhf_lightning.advantages.reinforce_plus_plus import ReinforcePlusPlus, ReinforcePlusPlusBaseline
from rlhf_lightning.advantages.remax import ReMax

__all__ = [
    "GAE",
    "OPO",
    "RLOO",
    "Group",
    "GroupCenter",
    "Process",
    "ReMax",
    "Reinforce",
    "ReinforcePlusPlus",
    "ReinforcePlusPlusBaseline",
]
