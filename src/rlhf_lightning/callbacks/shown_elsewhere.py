"""Samples and pictures for the loggers that take more than numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import MLFlowLogger, TensorBoardLogger
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from rlhf_lightning.callbacks.run_folder import RolloutModule, run_dir_of
from rlhf_lightning.callbacks.sample_table import as_cells, as_markdown, choose
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
