"""What trains gives the same twice: a look at it before the first epoch, by forwards outside of training steps."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from rlhf_lightning.devices import to_device
from rlhf_lightning.models.cpu_memory import keep_freed_memory
from rlhf_lightning.models.repeatable import check_repeatable, few_tokens
from rlhf_lightning.modules._checkpointed import CheckpointedModule
from rlhf_lightning.strategies import Sharding
from rlhf_lightning.types import PackedSequences

T = TypeVar("T")


class RepeatingModule(CheckpointedModule):
    """A module whose models draw nothing at random when they train.

    Attributes:
        sharding: How the strategy spreads models over ranks.
    """

    sharding: Sharding

    def short_forwards(self) -> dict[str, tuple[torch.nn.Module, Callable[[PackedSequences], Tensor]]]:
        """What trains, by what it is, each with a forward of it over a packed row."""
        return {}

    def on_fit_start(self) -> None:
        """Refuses models whose forward draws at random. On CPU, steps ask for the same large blocks of memory."""
        if self.device.type == "cpu":
            keep_freed_memory()
        for name, (model, forward) in self.short_forwards().items():
            row = to_device(few_tokens(), self.device)
            check_repeatable(name, model, partial(self.without_training, partial(forward, row)))
            for unit in model.modules():
                if isinstance(unit, FSDPModule):
                    unit.reshard()  # a root stays whole after a forward, and checkpoints are read into shards

    def without_training(self, compute: Callable[[], T]) -> T:
        """Runs forwards outside of a training step, at the precision of training steps; all ranks the same number."""
        with self.trainer.precision_plugin.forward_context():
            return self.sharding.forward(compute)
