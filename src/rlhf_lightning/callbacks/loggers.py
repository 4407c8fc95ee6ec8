"""Loggers that can go back: on resume they forget what a killed run logged after its last checkpoint."""

from __future__ import annotations

import csv
import io
from argparse import Namespace
from collections.abc import Iterable, Mapping
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from rlhf_lightning.callbacks.files import append, write_whole
from rlhf_lightning.run_layout import METRICS_FILE, TENSORBOARD_FOLDER
from rlhf_lightning.runs import read_table

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
