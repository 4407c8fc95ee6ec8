"""The order in which a data set is gone through, a function of (seed, position) alone: nothing to save and restore."""

from __future__ import annotations

from functools import lru_cache

import torch

from rlhf_lightning.data.seeding import derive_seed


class PromptOrder:
    """An endless sequence of indices: each epoch is a fresh permutation of the whole set.

    Position ``i`` lies in epoch ``i // size``; its index is that epoch's permutation at ``i % size``, and the
    permutation is a function of (seed, epoch).

    Args:
        size: Number of items.
        seed: Run seed.

    Raises:
        ValueError: If there are no items.
    """

    def __init__(self, size: int, seed: int) -> None:
        if size < 1:
            raise ValueError(f"an order needs at least one item, got {size}")
        self.size, self.seed = size, seed

    def epoch(self, epoch: int) -> list[int]:
        """All indices in the order of this epoch."""
        return _permutation(self.size, self.seed, epoch).tolist()  # type: ignore[no-any-return]

    def take(self, start: int, count: int) -> list[int]:
        """The indices at positions ``start`` to ``start + count − 1``, across epoch edges."""
        return [self[position] for position in range(start, start + count)]

    def __getitem__(self, position: int) -> int:
        """The index at a position."""
        epoch, offset = divmod(position, self.size)
        return int(_permutation(self.size, self.seed, epoch)[offset])


@lru_cache(maxsize=32)  # two epochs of each source of a mixture, and more
def _permutation(size: int, seed: int, epoch: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(derive_seed("order", seed, epoch))
    return torch.randperm(size, generator=generator)
