"""What the tests of modules share."""

from pathlib import Path
from typing import Any

import torch
from lightning import Trainer

from rlhf_lightning.data.prompts import PromptData
from rlhf_lightning.data.tasks.arithmetic import ChainedArithmetic
from rlhf_lightning.models import TinyLlama
from rlhf_lightning.modules import GRPOModule, PPOModule
from rlhf_lightning.protocols import Scorer
from rlhf_lightning.samplers import InProcessSampler
from rlhf_lightning.types import Scores


def trainer(root: Path, **changed: Any) -> Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    settings = {"accelerator": "cpu", "logger": False, "max_epochs": 1, "reload_dataloaders_every_n_epochs": 1, **quiet}
    return Trainer(default_root_dir=root, **{**settings, **changed})


def prompts(**changed: Any) -> PromptData:
    return PromptData(task=ChainedArithmetic(held_out=16), **changed)


def grpo(**changed: Any) -> GRPOModule:
    settings: dict[str, Any] = {
        "policy": TinyLlama(hidden=32, layers=2, heads=2),
        "sampler": InProcessSampler(max_new_tokens=8),
        "prompts_per_rollout": 6,
        "samples_per_prompt": 4,
        "updates_per_rollout": 2,
        "optimizer": lambda p: torch.optim.AdamW(p, lr=1e-3),
    }
    return GRPOModule(**{**settings, **changed})


def ppo(**changed: Any) -> PPOModule:
    settings: dict[str, Any] = {
        "policy": TinyLlama(hidden=32, layers=2, heads=2),
        "sampler": InProcessSampler(max_new_tokens=8),
        "prompts_per_rollout": 6,
        "samples_per_prompt": 4,
        "updates_per_rollout": 2,
        "optimizer": lambda p: torch.optim.AdamW(p, lr=1e-3),
        "critic_lr": 3e-3,
    }
    return PPOModule(**{**settings, **changed})


class EvenTokens(Scorer):
    """Share of even token ids: a reward that any policy can raise."""

    name = "even"

    def __call__(self, rollout):
        even = ((rollout.tokens % 2 == 0) & rollout.mask).sum(1) / rollout.lengths
        return Scores(even, {"even": even}, torch.zeros(len(even), dtype=torch.bool))
