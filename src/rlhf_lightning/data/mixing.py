"""Sources mixed at given proportions, in an endless order that is a function of the position alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction


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
