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


def newest_checkpoint(folder: Path) -> Path | None:
    """A run's ``checkpoints/last.ckpt``, else the ``*.ckpt`` written last; None if there is none."""
    checkpoints = folder / CHECKPOINTS_FOLDER
    if (checkpoints / "last.ckpt").exists():
        return checkpoints / "last.ckpt"
    return max(checkpoints.glob("*.ckpt"), key=lambda p: (p.stat().st_mtime_ns, p.name), default=None)
