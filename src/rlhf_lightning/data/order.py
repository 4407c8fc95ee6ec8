"""Which examples come when: seeds, permutations, mixtures of sources, and what is held out."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache

import torch


def derive_seed(*parts: int | str) -> int:
    """A 31-bit seed from any mix of numbers and texts: the same on every machine, in every process.

    Args:
        parts: What the seed is for, as ``("held-out", 7)``. Order and types count: ``(1, 2)``, ``(12,)`` and
            ``("1", 2)`` give unrelated seeds.

    Returns:
        An integer in [0, 2³¹), which every generator in use accepts.
    """
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") & 0x7FFF_FFFF


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


class Mixture:
    """Which source stands at each position.

    Among the first n positions the first source stands ``⌊n·p₁ + ½⌋`` times; the positions left to the others are
    shared in the same way, the second source first. So no count of the first source in any stretch is off by 1, and no
    other's by 2 (by ``1 + q`` for a source with share q of what its predecessors leave, and so on).

    Args:
        weights: What each source's share is proportional to.

    Raises:
        ValueError: If there are none, or one is not a finite positive number.
    """

    def __init__(self, weights: Sequence[float]) -> None:
        if not weights or any(not math.isfinite(w) or w <= 0 for w in weights):
            raise ValueError(f"proportions must be positive numbers, got {list(weights)}")
        exact = [Fraction(str(weight)) for weight in weights]
        self.shares: tuple[float, ...] = tuple(float(w / sum(exact)) for w in exact)
        self._of_rest = [weight / sum(exact[i:]) for i, weight in enumerate(exact)]

    def counts(self, positions: int) -> tuple[int, ...]:
        """How often each source stands among the first ``positions`` positions."""
        found, left = [], positions
        for share in self._of_rest:
            taken = math.floor(left * share + Fraction(1, 2))
            found.append(taken)
            left -= taken
        return tuple(found)

    def take(self, start: int, count: int) -> list[tuple[int, int]]:
        """For each of ``count`` positions from ``start`` on: its source, and how often that one stood before."""
        found, before = [], self.counts(start)
        for position in range(start + 1, start + count + 1):
            after = self.counts(position)
            which = next(i for i, (a, b) in enumerate(zip(before, after, strict=True)) if a != b)
            found.append((which, before[which]))
            before = after
        return found


def held_out_keys(keys: Sequence[Sequence[int]], fraction: float, seed: int) -> set[int]:
    """The questions to hold out of several sources.

    Each question has a number in [0, 1) that the seed gives it, and those below ``fraction`` are held out; so a
    question is on the same side in every source, and in every subset of a source. That each source has a held-out
    question, its lowest one is held out too.

    Args:
        keys: The questions of each source; one may stand there again and again.
        fraction: Share of the questions to hold out; 0 holds out none.
        seed: Of the choice.
    """
    if fraction <= 0:
        return set()
    number = {key: derive_seed("held-out", seed, key) for source in keys for key in source}
    below = {key for key, value in number.items() if value < fraction * 2**31}
    return below | {min(source, key=lambda key: (number[key], key)) for source in keys if len(source)}
