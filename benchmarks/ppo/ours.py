"""Our side: ``PPOModule`` or ``GRPOModule`` under Lightning's Trainer, as ``rlhf fit`` runs them."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from step.cases import LEARNING_RATE, NEW_TOKENS, PROMPTS
from step.clock import Clock
from step.ours import EndlessFolder, EvenShare, FixedPrompts, Timing

from ppo.work import KL, PHASES, Side
from rlhf_lightning.algorithms.kl import Fixed, KLTerm
from rlhf_lightning.algorithms.losses import ClippedValue
from rlhf_lightning.modules import GRPOModule, PPOModule
from rlhf_lightning.samplers import InProcessSampler
from rlhf_lightning.scorers import RewardModelScorer


class PhaseTiming(Timing):
    """Times the phases of a rollout under their own names."""

    NAMES = {name: name for name in PHASES}  # noqa: RUF012


def run(side: Side, folder: Path, reward: Path, prompt_tokens: int, dtype: str, steps: int) -> list[dict[str, Any]]:
    """Runs so many rollouts with their updates; what each took."""
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    scorer = RewardModelScorer(str(reward), dtype=dtype) if side.reward_model else EvenShare()  # type: ignore[arg-type]
    given: dict[str, Any] = {
        "policy": EndlessFolder(str(folder), dtype=dtype),  # type: ignore[arg-type]
        "sampler": InProcessSampler(max_new_tokens=NEW_TOKENS),
        "scorers": [scorer],
        "prompts_per_rollout": side.prompts,
        "samples_per_prompt": side.samples,
        "updates_per_rollout": 1,
        "epochs_per_rollout": side.epochs,
        "optimizer": lambda p: torch.optim.AdamW(p, lr=LEARNING_RATE, fused=True),
    }
    if side.critic:
        own = {"kl_reward": KLTerm("k1", Fixed(KL)), "value_loss": ClippedValue(0.2), "critic_lr": LEARNING_RATE}
        module: Any = PPOModule(**given, **own)
    else:
        module = GRPOModule(**given, kl_loss=KLTerm("k3", Fixed(KL)))
    clock = Clock()
    trainer = Trainer(
        max_epochs=steps, accelerator="cpu", logger=False, callbacks=[PhaseTiming(clock)], enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, reload_dataloaders_every_n_epochs=1,
    )  # fmt: skip
    texts = FixedPrompts(prompt_tokens, steps * side.prompts // PROMPTS)
    trainer.fit(module, datamodule=texts)
    return clock.steps
