"""What the files and folders of a run are called."""

from __future__ import annotations

from pathlib import Path

METRICS_FILE = "metrics.csv"
SAMPLES_FILE = "samples.jsonl"
CONFIG_FILE = "config.yaml"
REPORT_FILE = "report.md"
PLOTS_FOLDER = "plots"
TENSORBOARD_FOLDER = "tensorboard"
CHECKPOINTS_FOLDER = "checkpoints"
REWARD_MODEL_FOLDER = "reward_model"
TABLES_FOLDER = "sample_tables"
BEST_CHECKPOINT = "best.ckpt"
"""The weights of the best measurement: no checkpoint to go on from."""


def newest_checkpoint(folder: Path) -> Path | None:
    """A run's ``checkpoints/last.ckpt``, else the ``*.ckpt`` written last (not the best); None if there is none."""
    checkpoints = folder / CHECKPOINTS_FOLDER
    if (checkpoints / "last.ckpt").exists():
        return checkpoints / "last.ckpt"
    found = (path for path in checkpoints.glob("*.ckpt") if path.name != BEST_CHECKPOINT)
    return max(found, key=lambda p: (p.stat().st_mtime_ns, p.name), default=None)
