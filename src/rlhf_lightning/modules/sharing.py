"""What ranks take of each update, and what there must be of it for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from rlhf_lightning import ranks
from rlhf_lightning.errors import ConfigError

if TYPE_CHECKING:
    from lightning import Trainer

    from rlhf_lightning.modules._batches import MicroBatch

Batch = TypeVar("Batch", bound="MicroBatch")


def check_ranks(trainer: Trainer, smallest_update: int) -> None:
    """Refuses more ranks than an update has responses, and data that Lightning would deal out differently.

    Raises:
        ConfigError: With what is possible.
    """
    size = trainer.world_size
    if size == 1:
        return
    if size > smallest_update:
        raise ConfigError(
            f"trainer: {size} processes cannot share an update of {smallest_update} responses: each needs one. "
            f"Take at most {smallest_update} devices in all, or larger updates"
        )
    if trainer._accelerator_connector.use_distributed_sampler:
        raise ConfigError(
            "trainer.use_distributed_sampler must be false (as it is from the command line): ranks share each batch "
            "themselves, so Lightning must give all of them the same"
        )


def for_all_ranks(micro_batches: int) -> int:
    """The smallest number of micro-batches that all ranks can take as many of, given how many are needed."""
    size = ranks.world_size()
    return -(-micro_batches // size) * size


def own_batches(update: Sequence[Batch]) -> list[Batch]:
    """This rank's micro-batches of an update that was cut for all ranks; the others take as many."""
    size = ranks.world_size()
    mine = update[ranks.rank() :: size]
    return [replace(batch, micro_batches=len(mine)) for batch in mine]  # type: ignore[type-var]
