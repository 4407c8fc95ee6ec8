"""What a checkpoint of a module keeps besides weights and optimizer, and what it must agree on to be resumed."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn
from torch import nn

from rlhf_lightning.functional._products import products_kind, set_products_kind
from rlhf_lightning.functional._rounding import differences, rounding_of_this_process
from rlhf_lightning.modules.optim import named_groups
from rlhf_lightning.process_settings import threads_wake_quickly
from rlhf_lightning.strategies import Sharding
from rlhf_lightning.strategies.checkpoints import check_complete, check_identity, check_shapes, shapes
from rlhf_lightning.strategies.optimizer_states import by_place

_OF_THIS_PROCESS = ("time/", "speed/", "memory/")


class Checkpointing:
    """A module's part of its checkpoints; frozen weights are left out, as the configuration has their sources.

    Attributes:
        numbers: The metrics that the checkpoint held which this run goes on from.
    """

    def __init__(self) -> None:
        self.numbers: Mapping[str, float] = {}

    def save(
        self,
        checkpoint: dict[str, Any],
        module: nn.Module,
        sharding: Sharding,
        *,
        rollout_index: int,
        identity: dict[str, Any],
        controllers: Mapping[str, Any],
        numbers: Mapping[str, Any],
    ) -> None:
        """Adds cursor, identity, controllers and latest numbers under ``rlhf``; takes out frozen weights.

        Args:
            checkpoint: Lightning's, in place.
            module: Whose weights it has.
            sharding: Where they are.
            rollout_index: Number of epochs finished.
            identity: What a run that resumes must agree on.
            controllers: Objects with ``state_dict``.
            numbers: The newest metrics.
        """
        frozen = sharding.frozen_names(module)
        checkpoint["state_dict"] = {name: w for name, w in checkpoint["state_dict"].items() if name not in frozen}
        checkpoint["rlhf"] = {
            "rollout_index": rollout_index,
            "identity": identity,
            "products": products_kind(),
            "rounding": _rounding(),
            "numbers": {name: float(x) for name, x in numbers.items() if not name.startswith(_OF_THIS_PROCESS)},
            "controllers": {name: controller.state_dict() for name, controller in controllers.items()},
        }

    def check(
        self,
        checkpoint: Mapping[str, Any],
        module: nn.Module,
        sharding: Sharding,
        *,
        identity: dict[str, Any],
        to_train: bool,
    ) -> None:
        """Refuses what cannot be resumed.

        Args:
            checkpoint: What was read.
            module: Which shall have its weights.
            sharding: Where they are.
            identity: This run's.
            to_train: Whether training goes on, not an evaluation alone.

        Raises:
            ConfigError: If the checkpoint is of another model, another seed, has weights of other shapes, lacks some,
                or holds nothing else.
        """
        if to_train:
            check_complete(checkpoint)
        check_identity(identity, checkpoint["rlhf"]["identity"])
        if "state_dict" in checkpoint:  # else the strategy has compared and loaded them already
            frozen = sharding.frozen_names(module)
            wanted = {name: w for name, w in module.state_dict().items() if name not in frozen}
            check_shapes(shapes(wanted), shapes(checkpoint["state_dict"]))

    def number_states(
        self, checkpoint: Mapping[str, Any], module: nn.Module, groups: Mapping[str, Iterable[nn.Parameter]]
    ) -> None:
        """Optimizer states that shards keep by name, by place, for strategies that read them so; in place."""
        optimizers: list[dict[str, Any]] = checkpoint.get("optimizer_states", [])
        for number, states in enumerate(optimizers):
            if any(isinstance(key, str) for key in states["state"]):
                optimizers[number] = by_place(states, module, named_groups(groups))

    def restore(self, saved: Mapping[str, Any], controllers: Mapping[str, Any]) -> None:
        """Numbers, controllers and the kind of matrix products, of what :meth:`save` put under ``rlhf``.

        Warns where this process rounds otherwise than the one that saved.
        """
        set_products_kind(saved.get("products", products_kind()))
        if other := differences(_rounding(), saved.get("rounding", {})):
            rank_zero_warn(
                f"The checkpoint was computed otherwise ({other}): from here on the run equals the one that it goes on "
                "with up to rounding, not to the bit."
            )
        self.numbers = saved.get("numbers", {})
        for name, controller in controllers.items():
            controller.load_state_dict(saved["controllers"][name])


def _rounding() -> dict[str, str | int]:
    """Idle threads' waiting decides with how many threads small batches are decoded."""
    return {**rounding_of_this_process(), "threads wake quickly": int(threads_wake_quickly(os.environ))}
