"""How strategies that keep weights whole write and read checkpoints: files, and the folders that FSDP wrote."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from rlhf_lightning.errors import ConfigError
from rlhf_lightning.models.checkpoints import is_sharded, read_training, zero_parts

_log = logging.getLogger(__name__)


class CheckpointFiles(TorchCheckpointIO):
    """Writes straight to the file; reads folders of shards too, brought together in memory.

    Lightning's own takes a second copy in memory, and a third in the system's folder of temporary files. Paths with a
    scheme (``s3://…``) are left to it.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Writes it to disk, not into the system's memory alone."""
        if "://" in str(path):
            return super().save_checkpoint(checkpoint, path, storage_options)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with Path(path).open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())

    def load_checkpoint(
        self, path: Any, map_location: Any = lambda storage, place: storage, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """A file, or a folder of FSDP's.

        Raises:
            ConfigError: If it is a folder of DeepSpeed's.
        """
        folder = Path(path)
        if zero_parts(folder):
            raise ConfigError(
                f"only the strategy that wrote {path}, a folder of DeepSpeed's, can resume from it; to begin a new run "
                "from its policy: policy: {name: run, path: …}"
            )
        if is_sharded(folder):
            _log.info("bringing together the shards of %s", path)
            return read_training(folder)
        return super().load_checkpoint(path, map_location, weights_only)


def use_checkpoint_files(strategy: Any) -> None:
    """Has a strategy use them, unless the user gave it another plug-in or it has its own way."""
    if type(strategy.checkpoint_io) is TorchCheckpointIO:
        strategy.checkpoint_io = CheckpointFiles()
