"""The LightningModules."""

from rlhf_lightning.modules.grpo import GRPOModule
from rlhf_lightning.modules.ppo import PPOModule
from rlhf_lightning.modules.reward_model import RewardModel
from rlhf_lightning.modules.sft import SFTModule

__all__ = ["GRPOModule", "PPOModule", "RewardModel", "SFTModule"]
