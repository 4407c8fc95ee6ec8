"""Whether a run can be trusted: skipped updates, which are kept to be looked into, and failed scores."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_only

from rlhf_lightning import axes
from rlhf_lightning.callbacks.loggers import run_dir_of
from rlhf_lightning.callbacks.report import Section
from rlhf_lightning.errors import ConfigError
from rlhf_lightning.run_layout import METRICS_FILE, REPLAY_FOLDER, replay_file
from rlhf_lightning.runs import load_run
from rlhf_lightning.types import UpdateBatch


class RunHealth(Callback):
    """Ends a run with a warning where more than a stated share of updates was skipped, or of scores failed.

    The warning stands in the run's summary in the place of ``finished``, and ``rlhf fit`` leaves with exit code 3. What
    there was of both below the limits is said in the report. Shares are means over the run's rollouts, those before a
    resume included.

    Args:
        run_dir: The run's folder; that of the run's CSV logger when not given.
        max_skipped: Largest share of skipped updates (``update/skipped``) to bear.
        max_failed: Largest share of failed scores (``score/failed``) to bear.

    Raises:
        ConfigError: If a share is not in [0, 1].
    """

    def __init__(self, run_dir: str | Path | None = None, max_skipped: float = 0.1, max_failed: float = 0.1) -> None:
        for name, value in {"max_skipped": max_skipped, "max_failed": max_failed}.items():
            if not 0 <= value <= 1:
                raise ConfigError(f"RunHealth: {name} must be a share in [0, 1], got {value}")
        self.run_dir, self.max_skipped, self.max_failed = run_dir, max_skipped, max_failed
        self.found: list[str] = []

    @rank_zero_only
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Looks at the whole run."""
        folder = run_dir_of(trainer, self.run_dir)
        self.found = self.warnings(load_run(folder).metrics) if (folder / METRICS_FILE).is_file() else []

    def warnings(self, metrics: pd.DataFrame) -> list[str]:
        """What is beyond its limit, a clause each."""
        limits = {"max_skipped": self.max_skipped, "max_failed": self.max_failed}
        return [
            f"{share:.1%} of its {what}, more than {setting} ({limits[setting]:.1%})"
            for setting, what, share in _shares(metrics)
            if share > limits[setting]
        ]

    def report_section(self, metrics: pd.DataFrame) -> Section | None:
        """What there was of both; nothing where all is well."""
        found = [f"{share:.2%} of its {what}" for _, what, share in _shares(metrics) if share > 0]
        return Section("Failures", f"{' and '.join(found)}. The log names what failed.") if found else None


def _shares(metrics: pd.DataFrame) -> list[tuple[str, str, float]]:
    kinds = [
        ("max_skipped", "updates were skipped", "update/skipped"),
        ("max_failed", "scores failed", "score/failed"),
    ]
    return [
        (setting, what, float(metrics[column].mean()))
        for setting, what, column in kinds
        if column in metrics.columns and metrics[column].notna().any()
    ]


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
        axes.save(replay_file(folder, rollout, update), batches, "update", note)
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
