"""A run folder as tables: ``load_run("runs/quickstart").metrics`` is a DataFrame with one row a rollout.

Also says how a run folder's files are read; a last line that a kill cut off is left out.
"""

from __future__ import annotations

import csv
import io
import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from rlhf_lightning.errors import RunFolderError
from rlhf_lightning.registry import nearest
from rlhf_lightning.run_layout import CONFIG_FILE, METRICS_FILE, SAMPLES_FILE


@dataclass(frozen=True)
class Run:
    """One run folder. Files are read when they are first asked for, and then kept.

    Attributes:
        path: The folder.
    """

    path: Path

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.name

    @cached_property
    def metrics(self) -> pd.DataFrame:
        """One row a rollout (or a logged step); what a row lacks is NaN. Floats are those that were logged, exactly."""
        return read_metrics(self._file(METRICS_FILE))

    @cached_property
    def samples(self) -> pd.DataFrame:
        """One row a logged response, with its ``rollout``."""
        return pd.DataFrame(read_jsonl(self._file(SAMPLES_FILE)))

    @cached_property
    def config(self) -> dict[str, Any]:
        """The whole configuration that the run was started with."""
        path = self._file(CONFIG_FILE)
        try:
            loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
        except yaml.YAMLError as error:
            raise RunFolderError(f"{path} is not YAML: {error}") from error
        if not isinstance(loaded, dict):
            raise RunFolderError(f"{path} holds no keys")
        return loaded

    def column(self, name: str) -> pd.Series:
        """A column of the metrics.

        Raises:
            RunFolderError: If the run has none of that name, with the nearest.
        """
        if name not in self.metrics.columns:
            raise RunFolderError(f"run {self.path} has no metric {name!r}.{_hint(name, self.metrics.columns)}")
        return self.metrics[name]

    def _file(self, name: str) -> Path:
        if not (self.path / name).is_file():
            raise RunFolderError(f"run {self.path} has no {name}")
        return self.path / name


def load_run(path: str | Path) -> Run:
    """Opens a run folder.

    Raises:
        RunFolderError: If there is no such folder (with the nearest run beside it), or it is not a run's.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise RunFolderError(f"no run folder {folder}.{_hint(folder.name, _runs_in(folder.parent))}")
    if not (folder / METRICS_FILE).is_file():
        inside = _runs_in(folder)
        runs = f" It holds these runs: {', '.join(inside)}" if inside else ""
        raise RunFolderError(f"{folder} is not a run folder: it has no {METRICS_FILE}.{runs}")
    return Run(folder)


def compare(runs: Sequence[Run], column: str, *, against: str = "rollout") -> pd.DataFrame:
    """One metric of several runs side by side.

    Args:
        runs: The runs; those that share a name are told apart by their paths.
        column: The metric.
        against: The column that becomes the index, ``rollout`` or ``prompts_seen``.

    Returns:
        A column a run, rows ordered by ``against``; NaN where a run has no value.

    Raises:
        RunFolderError: If a run lacks one of the columns.
    """
    names = [run.name for run in runs]
    labels = [run.name if names.count(run.name) == 1 else str(run.path) for run in runs]
    series = [pd.Series(run.column(column).array, index=run.column(against)).dropna() for run in runs]
    return pd.concat(series, axis=1, keys=labels).sort_index().rename_axis(against)


def complete_lines(path: Path) -> list[str]:
    """The lines of a text file, without a last one that lacks its line feed because its writer was killed."""
    *lines, rest = path.read_text(encoding="utf-8", errors="replace").split("\n")
    if rest:
        warnings.warn(f"{path}: left out the last line, which is unfinished")
    return lines


def read_table(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Header and rows of a CSV file, as text.

    Raises:
        RunFolderError: If a line has more or fewer fields than the header, with its number.
    """
    rows = list(csv.reader(complete_lines(path)))
    if not rows:
        return [], []
    header, *body = rows
    for number, row in enumerate(body, start=2):
        if len(row) != len(header):
            raise RunFolderError(f"{path}, line {number}: {len(row)} fields, but the header has {len(header)}")
    return header, [dict(zip(header, row, strict=True)) for row in body]


def read_metrics(path: Path) -> pd.DataFrame:
    """A metrics file as numbers, exactly those that were written.

    Raises:
        RunFolderError: If a line cannot be read, with its number.
    """
    header, rows = read_table(path)
    text = io.StringIO()
    writer = csv.DictWriter(text, header)
    writer.writeheader()
    writer.writerows(rows)
    text.seek(0)
    return pd.read_csv(text, float_precision="round_trip") if header else pd.DataFrame()


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file.

    Raises:
        RunFolderError: If a line is not a JSON object, with its number.
    """
    return [parse_json_line(path, number, line) for number, line in enumerate(complete_lines(path), start=1)]


def parse_json_line(path: Path, number: int, line: str) -> dict[str, Any]:
    """The object on line ``number`` (from 1) of ``path``.

    Raises:
        RunFolderError: If it is not a JSON object.
    """
    try:
        found = json.loads(line)
    except json.JSONDecodeError as error:
        raise RunFolderError(f"{path}, line {number}: not JSON: {error}") from error
    if not isinstance(found, dict):
        raise RunFolderError(f"{path}, line {number}: not a JSON object")
    return found


def _runs_in(folder: Path) -> list[str]:
    return sorted(path.parent.name for path in folder.glob(f"*/{METRICS_FILE}"))


def _hint(name: str, known: Sequence[str] | pd.Index) -> str:
    near = nearest(name, known)
    listed = ", ".join(known) or "none"
    return f" Did you mean {near!r}? Known: {listed}" if near else f" Known: {listed}"
