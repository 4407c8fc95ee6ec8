"""Samples and pictures in loggers that are not ours, and Trackio as a logger of Lightning's."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import MLFlowLogger, TensorBoardLogger
from lightning.pytorch.loggers.logger import Logger, rank_zero_experiment
from lightning.pytorch.utilities import rank_zero_only

from rlhf_lightning.callbacks.loggers import RolloutModule, run_dir_of
from rlhf_lightning.callbacks.samples import as_cells, as_markdown, choose
from rlhf_lightning.errors import ConfigError
from rlhf_lightning.run_layout import PLOTS_FOLDER

Chosen = Sequence[tuple[str, Any]]


class ShownElsewhere(Callback):
    """Gives a rollout's best, median and worst samples, and at the end the run's pictures, to loggers that take them.

    Weights & Biases and Trackio get tables and images, TensorBoard texts and images, MLflow artifacts; any other logger
    that has ``log_table`` or ``log_image`` as Lightning's ``WandbLogger`` has gets them too. It must stand after the
    callback that draws the pictures.

    Args:
        run_dir: The run's folder; that of the run's CSV logger when not given.
        every: Rollouts between two tables; the first and the last rollout have one in any case. 0 gives none.
        count: How many best, median and worst samples each.
        max_chars: Most characters of a text.

    Raises:
        ConfigError: If a number is out of range.
    """

    def __init__(
        self, run_dir: str | Path | None = None, every: int = 10, count: int = 2, max_chars: int = 2000
    ) -> None:
        if every < 0 or count < 1 or max_chars < 1:
            raise ConfigError(
                f"ShownElsewhere: every must be at least 0, count and max_chars 1, got {every}, {count} and {max_chars}"
            )
        self.run_dir, self.every, self.count, self.max_chars = run_dir, every, count, max_chars
        self._latest: tuple[int, Chosen] | None = None

    @rank_zero_only
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gives the rollout's samples away, if it is their turn."""
        if not self.every or not isinstance(pl_module, RolloutModule):
            return
        samples = pl_module.rollout_samples
        by = next((key for key in ("reward", "score") if samples and samples[0].get(key) is not None), None)
        if by is None:
            return
        self._latest = (pl_module.rollout_index, choose(samples, by=by, count=self.count))
        if pl_module.rollout_index % self.every == 0:
            self._give_samples(trainer)

    @rank_zero_only
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gives the last rollout's samples away, and the pictures."""
        self._give_samples(trainer)
        step = int(getattr(pl_module, "rollout_index", trainer.current_epoch))
        for picture in sorted((run_dir_of(trainer, self.run_dir) / PLOTS_FOLDER).glob("*.png")):
            for logger in trainer.loggers:
                _taker(logger, _PICTURES, "log_image", _log_image)(logger, picture, step)

    def _give_samples(self, trainer: Trainer) -> None:
        if self._latest is None:
            return
        (rollout, chosen), self._latest = self._latest, None
        for logger in trainer.loggers:
            _taker(logger, _TABLES, "log_table", _log_table)(logger, chosen, self.max_chars, rollout)


Taker = Callable[..., None]


def _taker(logger: Logger, known: dict[type, Taker], method: str, else_: Taker) -> Taker:
    own = next((taker for kind, taker in known.items() if isinstance(logger, kind)), None)
    return own or (else_ if hasattr(logger, method) else _not_taken)


def _not_taken(*_: Any) -> None:
    """The logger takes numbers alone."""


def _log_table(logger: Any, chosen: Chosen, max_chars: int, rollout: int) -> None:
    columns, data = as_cells(chosen, max_chars=max_chars)
    logger.log_table(key="samples", columns=columns, data=data, step=rollout)


def _log_image(logger: Any, picture: Path, rollout: int) -> None:
    logger.log_image(key=f"plots/{picture.stem}", images=[str(picture)], step=rollout)


def _text_to_tensorboard(logger: Any, chosen: Chosen, max_chars: int, rollout: int) -> None:
    text = as_markdown(f"Samples of rollout {rollout}", chosen, max_chars=max_chars)
    logger.experiment.add_text("samples", text, rollout)


def _image_to_tensorboard(logger: Any, picture: Path, rollout: int) -> None:
    from matplotlib.image import imread

    logger.experiment.add_image(f"plots/{picture.stem}", imread(picture)[..., :3], rollout, dataformats="HWC")


def _text_to_mlflow(logger: Any, chosen: Chosen, max_chars: int, rollout: int) -> None:
    text = as_markdown(f"Samples of rollout {rollout}", chosen, max_chars=max_chars)
    logger.experiment.log_text(logger.run_id, text, f"samples/rollout-{rollout:06d}.md")


def _image_to_mlflow(logger: Any, picture: Path, rollout: int) -> None:
    logger.experiment.log_artifact(logger.run_id, str(picture), PLOTS_FOLDER)


_TABLES: dict[type, Taker] = {TensorBoardLogger: _text_to_tensorboard, MLFlowLogger: _text_to_mlflow}
_PICTURES: dict[type, Taker] = {TensorBoardLogger: _image_to_tensorboard, MLFlowLogger: _image_to_mlflow}


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
