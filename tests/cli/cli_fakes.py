"""A module and a datamodule that train in milliseconds, with every shape of plug-in argument."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader

from rlhf_lightning.algorithms.kl import KLTerm
from rlhf_lightning.callbacks import RolloutCheckpoint
from rlhf_lightning.errors import DataError
from rlhf_lightning.protocols import AdvantageEstimator, RewardTransform


class NeedsPackage(CSVLogger):
    """A logger whose package nobody installed."""

    def __init__(self) -> None:
        raise ModuleNotFoundError("comet-ml is not installed: pip install comet-ml")


class FakeModule(LightningModule):
    """Learns nothing; keeps what it was given.

    Args:
        advantage: One plug-in.
        reward_transforms: A list of them.
        kl_loss: A plain class that holds one.
        lr: Learning rate.
        steps: A number.
        seed: The run's seed.
        fail: Whether ``preflight`` refuses.
        options: Whatever.
    """

    made: list[FakeModule] = []  # noqa: RUF012

    def __init__(
        self,
        advantage: AdvantageEstimator,
        reward_transforms: list[RewardTransform] | None = None,
        kl_loss: KLTerm | None = None,
        lr: float = 0.1,
        steps: int = 3,
        seed: int = 0,
        fail: bool = False,
        options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if steps < 1:
            raise ValueError(f"steps must be at least 1, got {steps}")
        if steps == 13:
            raise AttributeError("a bug of ours")
        self.advantage, self.reward_transforms, self.kl_loss = advantage, reward_transforms or [], kl_loss
        self.lr, self.seed, self.fail, self.options = lr, seed, fail, options
        self.layer = nn.Linear(2, 1)
        self.seen_epochs: list[int] = []
        FakeModule.made.append(self)

    def preflight(self, datamodule: FakeData) -> None:
        if self.fail:
            raise DataError("prompts.jsonl:3: no field 'question'")

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.seen_epochs.append(self.current_epoch)
        loss = self.layer(batch).pow(2).mean()
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("held_out", self.layer(batch).mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), self.lr)


class FakeRewardModule(FakeModule):
    """Makes batches itself; keeps the data that it was checked with."""

    data: list[LightningDataModule] = []  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__(advantage=None)  # type: ignore[arg-type]

    def preflight(self, datamodule: LightningDataModule) -> None:
        FakeRewardModule.data.append(datamodule)

    def train_batches(self) -> DataLoader:
        return DataLoader(torch.ones(1, 2))


class FakeData(LightningDataModule):
    """Ones.

    Args:
        size: Number of rows.
        seed: The run's seed.
    """

    def __init__(self, size: int = 2, seed: int = 0) -> None:
        super().__init__()
        self.size, self.seed = size, seed

    def train_dataloader(self) -> DataLoader:
        return DataLoader(torch.ones(self.size, 2))

    val_dataloader = train_dataloader


class Kill(Callback):
    """A signal to this process at the end of the first epoch.

    Args:
        number: Which.
    """

    def __init__(self, number: int) -> None:
        self.number = number

    def on_train_epoch_end(self, trainer: object, pl_module: object) -> None:
        os.kill(os.getpid(), self.number)


def fake_callbacks(run_dir: Path, given: Sequence[Callback] = ()) -> list[Callback]:
    """Only the checkpoints of the usual callbacks."""
    own = any(isinstance(callback, RolloutCheckpoint) for callback in given)
    return [] if own else [RolloutCheckpoint(run_dir / "checkpoints")]
