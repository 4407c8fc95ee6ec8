"""The trained reward model, ready to score."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol, runtime_checkable

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from rlhf_lightning.callbacks.run_folder import run_dir_of
from rlhf_lightning.run_layout import REWARD_MODEL_FOLDER


@runtime_checkable
class ExportsRewardModel(Protocol):
    """A module that trains a reward model."""

    def export_reward_model(self, folder: Path) -> None:
        """Writes it to a folder, whole or not at all. All ranks call it, and the first one writes."""


class RewardModelExport(Callback):
    """Writes ``<run_dir>/reward_model/`` when a fit ends; does nothing for modules that train no reward model.

    Args:
        run_dir: The run's folder; that of the run's CSV logger when not given.
    """

    def __init__(self, run_dir: str | Path | None = None) -> None:
        self.run_dir = run_dir

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the finished model."""
        if isinstance(pl_module, ExportsRewardModel):
            run_dir = run_dir_of(trainer, self.run_dir)
            run_dir.mkdir(parents=True, exist_ok=True)
            pl_module.export_reward_model(run_dir / REWARD_MODEL_FOLDER)
