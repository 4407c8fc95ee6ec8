"""One run folder, and where runs are found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from rlhf_lightning.configfiles import without_unsaved
from rlhf_lightning.errors import RunFolderError
from rlhf_lightning.registry import nearest
from rlhf_lightning.run_layout import CONFIG_FILE, METRICS_FILE, SAMPLES_FILE
from rlhf_lightning.runs.files import encodable, read_jsonl, read_metrics
from rlhf_lightning.runs.tables import token_table


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
        return pd.DataFrame([encodable(sample) for sample in read_jsonl(self._file(SAMPLES_FILE))])

    @cached_property
    def tokens(self) -> pd.DataFrame:
        """One row a token of the samples, as :func:`rlhf_lightning.runs.tables.token_table` says; ``sample`` joins it.

        Raises:
            RunFolderError: If the samples were logged without their tokens.
        """
        return token_table(self.samples, str(self.path))

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
        whole: dict[str, Any] = without_unsaved(loaded)
        return whole

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


def find_runs(root: str | Path) -> list[Run]:
    """All run folders in a folder and below it, ordered by their paths.

    Raises:
        RunFolderError: If there is none, or no such folder.
    """
    folder = Path(root)
    found = sorted(path.parent for path in folder.rglob(METRICS_FILE)) if folder.is_dir() else []
    if not found:
        problem = "holds no run" if folder.is_dir() else "does not exist"
        raise RunFolderError(f"folder {folder} {problem}: a run's folder has a {METRICS_FILE}")
    return [Run(path) for path in found]


def _runs_in(folder: Path) -> list[str]:
    return sorted(path.parent.name for path in folder.glob(f"*/{METRICS_FILE}"))


def _hint(name: str, known: Sequence[str] | pd.Index) -> str:
    near = nearest(name, known)
    listed = ", ".join(known) or "none"
    return f" Did you mean {near!r}? Known: {listed}" if near else f" Known: {listed}"
