"""What an epoch is made of, and what each of its micro-batches comes to."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar

from torch import Tensor

from rlhf_lightning import ranks
from rlhf_lightning.types import Experience

Batch = TypeVar("Batch", bound="MicroBatch")


class MicroBatch(Protocol):
    """Anything that knows into how many micro-batches its update was cut, and how many tokens it trains on."""

    @property
    def micro_batches(self) -> int:
        """k, the same for all updates of an epoch."""

    @property
    def tokens(self) -> int:
        """Response tokens."""


@dataclass(frozen=True)
class Epoch:
    """An epoch before its updates.

    Attributes:
        batches: All micro-batches, with the same number for each update.
        metrics: Numbers of what they were made of.
        samples: What is worth reading of it, as plain values.
        experience: The rollout with its advantages, where there is one; callbacks are shown it.
    """

    batches: Sequence[MicroBatch]
    metrics: Mapping[str, float] = field(default_factory=dict)
    samples: list[dict[str, Any]] = field(default_factory=list)
    experience: Experience | None = None


@dataclass(frozen=True)
class Loss:
    """What a micro-batch comes to.

    Attributes:
        total: Its share of the update's loss, with gradient.
        terms: The parts of it by name (``loss/…``); a metric is their sum over an update.
        tokens: (b, T) tensors by name, in the order in which they are computed: ``logprobs``, ``values``, and the
            losses a token by the names of their terms.
        means: (b, T) diagnostics by name; a metric is their mean over the tokens of the mask.
        mask: (b, T) response tokens; needed for ``means``.
    """

    total: Tensor
    terms: Mapping[str, Tensor]
    tokens: Mapping[str, Tensor] = field(default_factory=dict)
    means: Mapping[str, Tensor] = field(default_factory=dict)
    mask: Tensor | None = None

    def __add__(self, other: Loss) -> Loss:
        """Both together, of the same micro-batch."""
        return Loss(
            self.total + other.total,
            {**self.terms, **other.terms},
            {**self.tokens, **other.tokens},
            {**self.means, **other.means},
            other.mask if self.mask is None else self.mask,
        )


class EpochBatches:
    """An iterable whose epoch is made when its first batch is asked for.

    Args:
        begin: Makes the epoch's batches, or gives those that it made before.
    """

    def __init__(self, begin: Callable[[], Sequence[MicroBatch]]) -> None:
        self._begin = begin

    def __iter__(self) -> Iterator[MicroBatch]:
        yield from self._begin()


def for_all_ranks(micro_batches: int) -> int:
    """The smallest number of micro-batches that all ranks can take as many of, given how many are needed."""
    size = ranks.world_size()
    return -(-micro_batches // size) * size


def own_batches(update: Sequence[Batch]) -> list[Batch]:
    """This rank's micro-batches of an update that was cut for all ranks; the others take as many."""
    mine = update[ranks.rank() :: ranks.world_size()]
    return [replace(batch, micro_batches=len(mine)) for batch in mine]  # type: ignore[type-var]
