"""One row of metrics a rollout, to every logger of the trainer."""

from __future__ import annotations

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers.logger import Logger

from rlhf_lightning.callbacks.loggers import ResumableCSVLogger, ResumableTensorBoardLogger
from rlhf_lightning.callbacks.run_folder import RolloutModule
from rlhf_lightning.process_memory import peak_resident


class MetricsLog(Callback):
    """Writes each finished rollout's metrics, its timings and the peak memory; the step is the rollout's number.

    What stands in ``rollout_metrics`` when training ends (a last evaluation) is one more row. The first row of a fit
    first makes the loggers forget everything from its rollout on: after a resume those rows are written again, to the
    same numbers (``time/``, ``speed/`` and ``memory/`` excepted). Modules that make no rollouts log for themselves;
    for them the loggers go back to the resumed step.

    It must stand after callbacks that add metrics.
    """

    def __init__(self) -> None:
        self._rewound = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Goes back to the resumed step, for modules that make no rollouts."""
        self._rewound = False
        if not isinstance(pl_module, RolloutModule):
            rewind(trainer.loggers, trainer.global_step, by="step")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the finished rollout's row."""
        if isinstance(pl_module, RolloutModule):
            self._write(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes what was measured after the last rollout."""
        if isinstance(pl_module, RolloutModule) and pl_module.rollout_metrics:
            self._write(trainer, pl_module)

    def _write(self, trainer: Trainer, module: RolloutModule) -> None:
        metrics = with_timings(module.rollout_metrics, module.events.pop_timings())
        row = {
            "rollout": module.rollout_index,
            "prompts_seen": module.prompts_seen,
            **peak_memory(),
            **metrics,
        }
        if not self._rewound:
            rewind(trainer.loggers, module.rollout_index)
            self._rewound = True
        for logger in trainer.loggers:
            logger.log_metrics(row, step=module.rollout_index)
            logger.save()


def rewind(loggers: list[Logger], position: int, *, by: str = "rollout") -> None:
    """Makes those loggers that can forget what they hold from ``position`` on."""
    for logger in loggers:
        if isinstance(logger, ResumableCSVLogger | ResumableTensorBoardLogger):
            logger.rewind(position, by=by)


def with_timings(metrics: dict[str, float], timings: dict[str, float]) -> dict[str, float]:
    """The metrics with timings that nobody had collected yet; seconds of the same phase add up."""
    merged = dict(metrics)
    for name, value in timings.items():
        merged[name] = value + (merged.get(name, 0.0) if name.startswith("time/") else 0.0)
    return merged


def peak_memory() -> dict[str, float]:
    """Most memory this process has held so far, in GiB: resident, and allocated on its CUDA device if it has one."""
    peak = {"memory/peak_rss_gib": peak_resident() / 2**30}
    if torch.cuda.is_available():
        peak["memory/peak_cuda_gib"] = torch.cuda.max_memory_allocated() / 2**30
    return peak
