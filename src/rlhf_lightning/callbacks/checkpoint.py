"""Checkpoints at rollout edges: whole or not at all, and the last one always known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from rlhf_lightning.callbacks.checkpoint_files import name_also, named, remove, write_checkpoint
from rlhf_lightning.callbacks.run_folder import run_dir_of
from rlhf_lightning.errors import ConfigError
from rlhf_lightning.run_layout import CHECKPOINTS_FOLDER


class RolloutCheckpoint(Checkpoint):
    """Saves after every ``every``-th epoch (a rollout, for policies), and after the one that a run ends with.

    A checkpoint is written aside and renamed, so a kill at any moment leaves the previous one whole.
    ``last.ckpt`` always names the newest. What happened after it is repeated on resume, to the same numbers. Where the
    strategy writes shards, a checkpoint is a folder.

    Args:
        folder: Where checkpoints go; ``checkpoints`` in the run's folder when not given.
        every: Epochs between two checkpoints.
        keep: How many are kept, the newest first; 0 keeps all.
    """

    def __init__(self, folder: str | Path | None = None, every: int = 1, keep: int = 2) -> None:
        if every < 1 or keep < 0:
            raise ConfigError(f"RolloutCheckpoint: every ({every}) must be at least 1 and keep ({keep}) at least 0")
        self.every, self.keep = every, keep
        self.folder = Path(CHECKPOINTS_FOLDER if folder is None else folder)
        self._in_run_folder = folder is None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Finds the run's folder, where no other was given."""
        if self._in_run_folder:
            self.folder = run_dir_of(trainer) / CHECKPOINTS_FOLDER

    @property
    def last(self) -> Path:
        """The newest checkpoint."""
        return self.folder / "last.ckpt"

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves at the edge."""
        done = trainer.current_epoch + 1
        ends = done == trainer.max_epochs or trainer.should_stop or trainer.received_sigterm
        if done % self.every == 0 or ends:
            self.save(trainer, done)

    def save(self, trainer: Trainer, done: int) -> None:
        """Writes the checkpoint, moves ``last.ckpt`` on, and only then removes what is too old. All ranks call it."""
        target = self.after(done)
        write_checkpoint(trainer, target, resumable=True)  # the optimizer and the cursor too
        if trainer.is_global_zero:
            name_also(target, self.last)
            self._remove_old()

    def after(self, done: int) -> Path:
        """The checkpoint after so many epochs, if it was saved and is still kept."""
        return self.folder / f"rollout-{done:06d}.ckpt"

    def _remove_old(self) -> None:
        saved, in_use = sorted(self.folder.glob("rollout-*.ckpt")), named(self.folder)
        for path in saved[: -self.keep] if self.keep else []:
            if path.resolve() not in in_use:
                remove(path)

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the folder is the state."""
        return {}
