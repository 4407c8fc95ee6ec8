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
REPLAY_FOLDER = "replay"


def replay_file(folder: Path, rollout: int, update: int) -> Path:
    """Where an update that was skipped is kept; names sort by time."""
    return folder / f"update-{rollout:06d}-{update:04d}.safetensors"


def rollout_checkpoint(folder: Path, rollout: int) -> Path:
    """The checkpoint with the weights that a run began its rollout number ``rollout`` with."""
    return folder / CHECKPOINTS_FOLDER / f"rollout-{rollout:06d}.ckpt"


def newest_checkpoint(folder: Path) -> Path | None:
    """A run's ``checkpoints/last.ckpt``, else the ``*.ckpt`` written last (not the best); None if there is none."""
    checkpoints = folder / CHECKPOINTS_FOLDER
    if (checkpoints / "last.ckpt").exists():
        return checkpoints / "last.ckpt"
    found = (path for path in checkpoints.glob("*.ckpt") if path.name != BEST_CHECKPOINT)
    return max(found, key=lambda p: (p.stat().st_mtime_ns, p.name), default=None)


def is_run(path: Path) -> bool:
    """Whether a path looks like a run folder or a checkpoint rather than a model folder."""
    return path.suffix == ".ckpt" or ((path / CONFIG_FILE).is_file() and not (path / "config.json").is_file())
