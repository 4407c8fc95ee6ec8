"""What a run writes and shows: metrics, samples, progress, pictures, a report, checkpoints."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from lightning.pytorch.callbacks import Callback, ProgressBar
from lightning.pytorch.loggers.logger import Logger

from rlhf_lightning.callbacks.checkpoint import RewardModelExport, RolloutCheckpoint
from rlhf_lightning.callbacks.health import RunHealth, SkippedUpdates
from rlhf_lightning.callbacks.held_out import HeldOutEval
from rlhf_lightning.callbacks.kl_budget import KLBudget
from rlhf_lightning.callbacks.loggers import MetricsLog, ResumableCSVLogger, ResumableTensorBoardLogger
from rlhf_lightning.callbacks.other_loggers import ShownElsewhere, TrackioLogger
from rlhf_lightning.callbacks.plateau import PlateauReport
from rlhf_lightning.callbacks.plots import RunPlots
from rlhf_lightning.callbacks.preemption import Preemption
from rlhf_lightning.callbacks.progress import PhaseProgress
from rlhf_lightning.callbacks.report import RunReport
from rlhf_lightning.callbacks.samples import SampleLog, SampleTable
from rlhf_lightning.callbacks.watchdog import Watchdog
from rlhf_lightning.run_layout import CHECKPOINTS_FOLDER

__all__ = [
    "HeldOutEval",
    "KLBudget",
    "MetricsLog",
    "PhaseProgress",
    "PlateauReport",
    "Preemption",
    "ResumableCSVLogger",
    "ResumableTensorBoardLogger",
    "RewardModelExport",
    "RolloutCheckpoint",
    "RunHealth",
    "RunPlots",
    "RunReport",
    "SampleLog",
    "SampleTable",
    "ShownElsewhere",
    "SkippedUpdates",
    "TrackioLogger",
    "Watchdog",
    "default_callbacks",
    "default_loggers",
]


def default_callbacks(run_dir: Path, given: Sequence[Callback] = ()) -> list[Callback]:
    """The callbacks of an ordinary run, in the order they need. Callbacks that add metrics go before them.

    Args:
        run_dir: The run's folder.
        given: Callbacks that the user has set already: a default of the same type is left out, and so is the progress
            display if there is another.
    """
    defaults = [
        Watchdog(),
        Preemption(),
        MetricsLog(),
        SampleLog(run_dir),
        SkippedUpdates(run_dir),
        PhaseProgress(),
        RunHealth(run_dir),
        RunPlots(run_dir),
        RunReport(run_dir),
        ShownElsewhere(run_dir),
        RewardModelExport(run_dir),
        RolloutCheckpoint(run_dir / CHECKPOINTS_FOLDER),
    ]
    kinds = [ProgressBar if isinstance(callback, ProgressBar) else type(callback) for callback in defaults]
    return [
        callback
        for callback, kind in zip(defaults, kinds, strict=True)
        if not any(isinstance(other, kind) for other in given)
    ]


def default_loggers(run_dir: Path, given: Logger | Iterable[Logger] | bool | None = None) -> list[Logger]:
    """The run's table ``metrics.csv``, and beside it what was asked for.

    Args:
        run_dir: The run's folder.
        given: A logger or several; True or None for TensorBoard files in the run's folder, False for no other logger.
    """
    table: list[Logger] = [ResumableCSVLogger(run_dir)]
    if given is None or isinstance(given, bool):
        return table if given is False else [*table, ResumableTensorBoardLogger(run_dir)]
    others = [given] if isinstance(given, Logger) else list(given)
    return [*(table if not any(isinstance(other, ResumableCSVLogger) for other in others) else []), *others]
