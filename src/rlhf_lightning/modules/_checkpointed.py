"""What a checkpoint of a module keeps beside weights and optimizer, and what it must agree on to be resumed."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from lightning import LightningModule
from lightning.pytorch.utilities import rank_zero_warn

from rlhf_lightning.functional._products import products_kind, set_products_kind
from rlhf_lightning.functional._rounding import differences, rounding_of_this_process
from rlhf_lightning.modules.optim import named_groups
from rlhf_lightning.process_settings import threads_wake_quickly
from rlhf_lightning.strategies import Sharding
from rlhf_lightning.strategies.checkpoints import check_complete, check_identity, check_shapes, shapes
from rlhf_lightning.strategies.optimizer_states import by_place

_OF_THIS_PROCESS = ("time/", "speed/", "memory/")


class CheckpointedModule(LightningModule):
    """Keeps a cursor and controllers in its checkpoints, and no frozen weights.

    Attributes:
        rollout_index: Number of epochs finished.
        sharding: Where the weights are.
    """

    rollout_index: int
    sharding: Sharding
    _numbers: Mapping[str, float] = {}

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """What a checkpoint must agree on with the run that resumes it."""

    @abstractmethod
    def parameter_groups(self) -> dict[str, Iterable[torch.nn.Parameter]]:
        """Parameters by group name."""

    def controllers(self) -> dict[str, Any]:
        """Objects with ``state_dict`` and ``load_state_dict`` that a checkpoint must keep."""
        return {}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds cursor, controllers, latest numbers; takes out frozen weights: the configuration has their sources."""
        frozen = self.sharding.frozen_names(self)
        checkpoint["state_dict"] = {name: w for name, w in checkpoint["state_dict"].items() if name not in frozen}
        checkpoint["rlhf"] = {
            "rollout_index": self.rollout_index,
            "identity": self.identity(),
            "products": products_kind(),
            "rounding": _rounding(),
            "numbers": {
                name: float(number)
                for name, number in self.trainer.callback_metrics.items()
                if not name.startswith(_OF_THIS_PROCESS)
            },
            "controllers": {name: controller.state_dict() for name, controller in self.controllers().items()},
        }

    def on_load_checkpoint(self, checkpoint: Mapping[str, Any]) -> None:
        """Restores the cursor, the controllers and the kind of matrix products.

        Raises:
            ConfigError: If the checkpoint is of another model, another seed, has weights of other shapes, lacks some,
                or holds nothing else.
        """
        if self.trainer.state.fn == "fit":
            check_complete(checkpoint)
        saved = checkpoint["rlhf"]
        check_identity(self.identity(), saved["identity"])
        if "state_dict" in checkpoint:  # else the strategy has compared and loaded them already
            frozen = self.sharding.frozen_names(self)
            wanted = {name: w for name, w in self.state_dict().items() if name not in frozen}
            check_shapes(shapes(wanted), shapes(checkpoint["state_dict"]))
        self._number_states(checkpoint.get("optimizer_states", []))
        self.rollout_index = saved["rollout_index"]
        self._numbers = saved.get("numbers", {})
        self.restore(saved)

    def on_train_start(self) -> None:
        """Callbacks find the checkpoint's numbers until there are newer ones; Lightning forgets them before this."""
        self.trainer.callback_metrics.update({name: torch.tensor(number) for name, number in self._numbers.items()})

    def _number_states(self, optimizers: list[dict[str, Any]]) -> None:
        """States that shards keep by name, by place, for strategies that read them so after this hook; in place."""
        groups = named_groups(self.parameter_groups())
        for number, states in enumerate(optimizers):
            if any(isinstance(key, str) for key in states["state"]):
                optimizers[number] = by_place(states, self, groups)

    def restore(self, saved: Mapping[str, Any]) -> None:
        """The controllers and the kind of matrix products, of what ``on_save_checkpoint`` saved under ``rlhf``."""
        set_products_kind(saved.get("products", products_kind()))
        if other := differences(_rounding(), saved.get("rounding", {})):
            rank_zero_warn(
                f"The checkpoint was computed otherwise ({other}): from here on the run equals the one that it goes on "
                "with up to rounding, not to the bit."
            )
        for name, controller in self.controllers().items():
            controller.load_state_dict(saved["controllers"][name])


def _rounding() -> dict[str, str | int]:
    """Idle threads' waiting decides with how many threads small batches are decoded."""
    return {**rounding_of_this_process(), "threads wake quickly": int(threads_wake_quickly(os.environ))}
