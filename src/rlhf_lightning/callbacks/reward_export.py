"""The trained reward model, ready to score."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Protocol, runtime_checkable

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from rlhf_lightning.callbacks.run_folder import run_dir_of
from rlhf_lightning.models.export import write_whole_folder
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

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Before any weights are loaded, tries whether the folder can be written at the end.

        Raises:
            RunFolderError: If not.
        """
        if stage == "fit" and isinstance(pl_module, ExportsRewardModel) and trainer.is_global_zero:
            tried = run_dir_of(trainer, self.run_dir) / f".{REWARD_MODEL_FOLDER}.tried"
            write_whole_folder(tried, lambda aside: (aside / "tried").touch())
            shutil.rmtree(tried)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the finished model."""
        if isinstance(pl_module, ExportsRewardModel):
            run_dir = run_dir_of(trainer, self.run_dir)
            run_dir.mkdir(parents=True, exist_ok=True)
            pl_module.export_reward_model(run_dir / REWARD_MODEL_FOLDER)
