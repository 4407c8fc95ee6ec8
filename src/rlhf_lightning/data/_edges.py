"""What Lightning asks of every data module of ours."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Iterable
from typing import Any

from lightning import LightningDataModule
from lightning.pytorch.trainer.states import TrainerFn
from torch.utils.data import DataLoader

from rlhf_lightning.errors import ConfigError


class EdgeData(LightningDataModule):
    """Hands the module's own batches to the trainer, and batches of what is held out to everything but fitting."""

    @abstractmethod
    def held_out_batches(self) -> DataLoader[Any]:
        """Lists of ``eval_batch_size`` held-out items."""

    def train_dataloader(self) -> Iterable[Any]:
        """The batches that the module makes of this data, fresh each epoch.

        Raises:
            ConfigError: If the model is no module of ours and makes none.
        """
        module = self.trainer.lightning_module  # type: ignore[union-attr]
        if not hasattr(module, "train_batches"):
            raise ConfigError(f"model {type(module).__name__} makes no batches of this data (it lacks train_batches)")
        return module.train_batches()  # type: ignore[operator, no-any-return]

    def val_dataloader(self) -> Any:
        """Batches of what is held out for ``validate``; none while fitting, where a callback evaluates."""
        if self.trainer is None or self.trainer.state.fn != TrainerFn.FITTING:
            return self.held_out_batches()
        warnings.filterwarnings("ignore", "Total length of `list` across ranks is zero")  # it is meant to be
        return []

    def test_dataloader(self) -> DataLoader[Any]:
        """Batches of what is held out."""
        return self.held_out_batches()

    def predict_dataloader(self) -> DataLoader[Any]:
        """Batches of what is held out."""
        return self.held_out_batches()
