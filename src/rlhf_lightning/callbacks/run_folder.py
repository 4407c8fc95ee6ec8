"""What the callbacks need to know of the module they watch and of the folder they write to."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from lightning import Trainer

from rlhf_lightning.callbacks.loggers import ResumableCSVLogger
from rlhf_lightning.events import Events


@runtime_checkable
class RolloutModule(Protocol):
    """An on-policy module: one Lightning epoch is one rollout.

    Lightning runs callbacks before the module's own hook of the same name, so the three below must describe the
    finished rollout when ``on_train_epoch_end`` begins. Metrics that stand there at ``on_train_end`` (a last
    evaluation) are one more row.

    Attributes:
        rollout_index: Number of the rollout, from 0; goes on counting after a resume.
        prompts_seen: Prompts that the weights which made this rollout had been trained on.
        events: The phase clock.
        rollout_metrics: The rollout's numbers so far.
        rollout_samples: Its responses, as plain values.
    """

    rollout_index: int
    prompts_seen: int
    events: Events
    rollout_metrics: dict[str, float]
    rollout_samples: list[dict[str, Any]]


def run_dir_of(trainer: Trainer, given: str | Path | None = None) -> Path:
    """Where a run's files go: the folder given, else that of its CSV logger, else the trainer's root."""
    if given is not None:
        return Path(given)
    csv = next((logger for logger in trainer.loggers if isinstance(logger, ResumableCSVLogger)), None)
    return csv.run_dir if csv else Path(trainer.default_root_dir)
