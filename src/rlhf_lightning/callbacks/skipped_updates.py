"""Updates whose gradient was not finite, kept in files for ``rlhf replay``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from rlhf_lightning.callbacks.run_folder import run_dir_of
from rlhf_lightning.data.batch_files import save_update
from rlhf_lightning.errors import ConfigError
from rlhf_lightning.run_layout import REPLAY_FOLDER, replay_file
from rlhf_lightning.types import UpdateBatch


class SkippedUpdates(Callback):
    """Writes each skipped update of a policy to ``<run_dir>/replay/update-<rollout>-<update>.safetensors``.

    The file holds all micro-batches of the update, the gradient norms that were seen, and which responses of the
    rollout had a reward that is not finite. The number of files is
    bounded: the oldest go first.

    Args:
        run_dir: The run's folder; that of the run's CSV logger when not given.
        keep: How many files are kept.

    Raises:
        ConfigError: If ``keep`` is below 1.
    """

    def __init__(self, run_dir: str | Path | None = None, keep: int = 8) -> None:
        if keep < 1:
            raise ConfigError(f"SkippedUpdates: keep must be at least 1, got {keep}")
        self.run_dir, self.keep = run_dir, keep

    def on_skipped_update(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        update: int,
        batches: Sequence[Any],
        norms: Mapping[str, Any],
    ) -> None:
        """Writes the update, if it is one of a policy; the hook is our modules' own, called before the step is skipped.

        Args:
            trainer: The trainer.
            pl_module: The module.
            update: Number of the update within its rollout, over all passes.
            batches: Its micro-batches.
            norms: The gradient norms, by parameter group.
        """
        if not trainer.is_global_zero or not all(isinstance(batch, UpdateBatch) for batch in batches):
            return
        folder = run_dir_of(trainer, self.run_dir) / REPLAY_FOLDER
        rollout = int(pl_module.rollout_index)  # type: ignore[arg-type]
        note = {
            "rollout": rollout,
            "update": update,
            "norms": {name: str(float(norm)) for name, norm in norms.items()},  # JSON has no nan
            "rewards": _bad_rewards(pl_module.rollout_samples),  # type: ignore[arg-type]
        }
        save_update(replay_file(folder, rollout, update), batches, note)
        for old in sorted(folder.glob("update-*.safetensors"))[: -self.keep]:
            old.unlink()


def _bad_rewards(samples: Sequence[Mapping[str, Any]], most: int = 16) -> list[dict[str, Any]]:
    """The first of the rollout's responses whose reward or a score is not finite: advantages spread them to others."""
    found = []
    for number, sample in enumerate(samples):
        numbers = {"reward": sample["reward"], **sample["scores"]}
        bad = {name: str(value) for name, value in numbers.items() if not math.isfinite(value)}
        if bad:
            found.append({"sequence": number, "prompt": sample["prompt"], "response": sample["response"], "bad": bad})
    return found[:most]
