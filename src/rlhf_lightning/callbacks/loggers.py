"""The run's table and TensorBoard files, what goes into them, and the folder they lie in."""

from __future__ import annotations

import csv
import io
from argparse import Namespace
from collections.abc import Iterable, Mapping
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from rlhf_lightning.events import Events
from rlhf_lightning.process_memory import peak_resident
from rlhf_lightning.run_layout import METRICS_FILE, TENSORBOARD_FOLDER
from rlhf_lightning.runs import read_table
from rlhf_lightning.runs.files import append, write_whole

FIRST_COLUMNS = ("rollout", "prompts_seen", "step", "epoch")
"""These stand first in the table, the others follow by name."""


class ResumableCSVLogger(Logger):
    """Writes ``<run_dir>/metrics.csv``, a row a call, each handed to the operating system at once.

    Floats are written so that reading gives the same bits. A new column rewrites the file in one step. A last line cut
    off by a kill is dropped before anything is added. Rows without a ``rollout`` (Lightning's own) get a ``step``.

    Args:
        run_dir: The run's folder; made when the first row comes.
    """

    def __init__(self, run_dir: str | Path) -> None:
        super().__init__()
        self.run_dir = Path(run_dir)
        self.path = self.run_dir / METRICS_FILE
        self._columns: list[str] | None = None

    @property
    def name(self) -> str:
        """Empty: the run folder is no subfolder of anything."""
        return ""

    @property
    def version(self) -> str:
        """Empty, for the same reason."""
        return ""

    @property
    def save_dir(self) -> str:
        """The run's folder."""
        return str(self.run_dir)

    @property
    def log_dir(self) -> str:
        """The run's folder."""
        return str(self.run_dir)

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Writes nothing: the run's ``config.yaml`` holds them all."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Adds a row.

        Args:
            metrics: Numbers by name.
            step: Becomes a column when the metrics have no ``rollout``.

        Raises:
            TypeError: If a value is not a number.
            RunFolderError: If the file that is there already cannot be read.
        """
        row = {name: number_text(name, value) for name, value in metrics.items()}
        if "rollout" not in row and step is not None:
            row["step"] = str(step)
        columns = self._known_columns()
        if row.keys() <= set(columns):
            append(self.path, csv_text(columns, [row], header=False))
        else:
            self._rewrite([*columns, *row], [*read_table(self.path)[1], row] if columns else [row])

    @rank_zero_only
    def rewind(self, position: int, *, by: str = "rollout") -> None:
        """Forgets everything logged from ``position`` on, as if the run had not gone further.

        Args:
            position: First rollout (or step) to forget.
            by: The column that tells the position. Later rows without it go too.

        Raises:
            RunFolderError: If the file cannot be read.
        """
        if not self.path.exists():
            return
        columns, rows = read_table(self.path)
        kept = rows_before(rows, position, by)
        if len(kept) < len(rows):
            self._rewrite(columns, kept)

    def _known_columns(self) -> list[str]:
        if self._columns is None:
            self.run_dir.mkdir(parents=True, exist_ok=True)
            self._columns = []
            if self.path.exists():
                self._rewrite(*read_table(self.path))
        return self._columns

    def _rewrite(self, columns: Iterable[str], rows: list[dict[str, str]]) -> None:
        self._columns = ordered_columns(columns)
        write_whole(self.path, csv_text(self._columns, rows) if self._columns else "")


class ResumableTensorBoardLogger(TensorBoardLogger):
    """TensorBoard files in ``<run_dir>/tensorboard``.

    Args:
        run_dir: The run's folder.
    """

    def __init__(self, run_dir: str | Path) -> None:
        super().__init__(str(Path(run_dir) / TENSORBOARD_FOLDER), name="", version="", default_hp_metric=False)

    @rank_zero_only
    def rewind(self, position: int, *, by: str = "rollout") -> None:
        """Makes TensorBoard leave out what earlier files of this folder hold from ``position`` on.

        Args:
            position: First step to leave out.
            by: What the steps are; TensorBoard's files don't tell, so it changes nothing.
        """
        if len(list(Path(self.log_dir).glob("events.out.tfevents.*"))) <= (self._experiment is not None):
            return
        if self._experiment is not None:
            self._experiment.close()
        self._experiment, self._kwargs = None, {**self._kwargs, "purge_step": position}


def number_text(name: str, value: Any) -> str:
    """A number as the shortest text that reads back to the same bits.

    Raises:
        TypeError: If it is not a number.
    """
    if isinstance(value, Tensor):
        value = value.item()
    if isinstance(value, Integral):
        return str(int(value))
    if isinstance(value, Real):
        return repr(float(value))
    raise TypeError(f"metric {name!r} is {value!r} of type {type(value).__name__}, not a number")


def ordered_columns(columns: Iterable[str]) -> list[str]:
    """The columns without repetition, :data:`FIRST_COLUMNS` first, the others by name."""
    unique = set(columns)
    return [name for name in FIRST_COLUMNS if name in unique] + sorted(unique - set(FIRST_COLUMNS))


def rows_before(rows: list[dict[str, str]], position: int, by: str) -> list[dict[str, str]]:
    """The rows up to the first whose ``by`` is ``position`` or more, and no later ones that lack it."""
    reached = (i for i, row in enumerate(rows) if row.get(by) and int(row[by]) >= position)
    kept = rows[: next(reached, len(rows))]
    while kept and not kept[-1].get(by):
        kept.pop()
    return kept


def csv_text(columns: list[str], rows: Iterable[Mapping[str, str]], *, header: bool = True) -> str:
    """Rows as CSV lines; what a row lacks is empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


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
