"""What an epoch is made of: micro-batches, made when the first one is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol


class MicroBatch(Protocol):
    """Anything that knows into how many micro-batches its update was cut, and how many tokens it trains on."""

    @property
    def micro_batches(self) -> int:
        """k, the same for all updates of an epoch."""

    @property
    def tokens(self) -> int:
        """Response tokens."""


class EpochBatches:
    """An iterable whose epoch is made when its first batch is asked for.

    Args:
        begin: Makes the epoch's batches, or gives those that it made before.
    """

    def __init__(self, begin: Callable[[], Sequence[MicroBatch]]) -> None:
        self._begin = begin

    def __iter__(self) -> Iterator[MicroBatch]:
        yield from self._begin()
