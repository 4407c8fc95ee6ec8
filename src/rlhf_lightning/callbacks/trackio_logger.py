"""Trackio as a logger of Lightning's."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger, rank_zero_experiment
from lightning.pytorch.utilities import rank_zero_only

from rlhf_lightning.errors import ConfigError


class TrackioLogger(Logger):
    """Logs to Trackio: a database on this machine (``$TRACKIO_DIR``), shown by ``trackio show``, or a server or Space.

    Args:
        project: Name of the project.
        name: Name of the run; one of Trackio's when not given.
        resume: What becomes of a run of that name that is there already: ``allow`` goes on with it, ``never`` makes
            another, ``must`` asks for it.
        settings: Further arguments of ``trackio.init``: ``group``, ``space_id``, ``server_url``, ….

    Raises:
        ConfigError: If Trackio is not installed.
    """

    def __init__(
        self,
        project: str = "rlhf-lightning",
        name: str | None = None,
        resume: str = "allow",
        settings: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if find_spec("trackio") is None:
            raise ConfigError("logger trackio: it comes with: pip install 'rlhf-lightning[loggers]'")
        self._project, self._name, self._resume, self._settings = project, name, resume, settings or {}
        self._run: Any = None

    @property
    def name(self) -> str:
        """The project."""
        return self._project

    @property
    def version(self) -> str | None:
        """The run's name."""
        return self._name

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """Trackio's run; begun when it is first asked for."""
        if self._run is None:
            import trackio

            settings = {"project": self._project, "name": self._name, "resume": self._resume, "embed": False}
            self._run = trackio.init(**{**settings, **self._settings})
        return self._run

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Gives the settings to the run, which sends them with its first numbers."""
        self.experiment.config.update(vars(params) if isinstance(params, Namespace) else params)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Logs numbers by name."""
        self.experiment.log(dict(metrics), step=step)

    @rank_zero_only
    def log_table(self, key: str, columns: Sequence[str], data: Sequence[Sequence[Any]], step: int) -> None:
        """Logs a table."""
        import trackio

        self.experiment.log({key: trackio.Table(columns=list(columns), data=[list(row) for row in data])}, step=step)

    @rank_zero_only
    def log_image(self, key: str, images: Sequence[str | Path], step: int) -> None:
        """Logs a picture from its file."""
        import trackio

        self.experiment.log({key: trackio.Image(str(images[0]))}, step=step)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Ends the run, once everything is written."""
        if self._run is not None:
            self._run.finish()
            self._run = None
