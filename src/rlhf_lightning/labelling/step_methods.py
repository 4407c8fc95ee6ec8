"""How steps get their labels from completions: which prefixes are asked about, and what follows from the answers."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf_lightning.functional.step_labels import (
    first_wrong_step,
    hard_step_labels,
    last_right_step,
    next_probe,
    search_step_labels,
    soft_step_labels,
)


@dataclass(frozen=True)
class Count:
    """What came of a prefix's completions.

    Attributes:
        rollouts: Completions that were judged.
        successes: Those of them that are right.
    """

    rollouts: int = 0
    successes: int = 0


Counts = Mapping[int, Count]
"""Counts of a solution's prefixes, by their number of steps (1 to S - 1: the whole solution needs no completions)."""


class StepMethod(ABC):
    """One way to label the S steps of a solution."""

    @abstractmethod
    def wanted(self, counts: Counts, steps: int, right: bool | None) -> list[int]:
        """Prefixes to ask about next, by their number of steps; none when all is known.

        Args:
            counts: What is known by now.
            steps: S, at least 1.
            right: Whether the whole solution is right; None when unknown.
        """

    @abstractmethod
    def labels(self, counts: Counts, steps: int, right: bool | None) -> list[float | None]:
        """The label of each of the S steps: a probability of being right, None where it is unknown."""


class Exhaustive(StepMethod):
    """Asks about every prefix; the last step's label is the whole solution's verdict."""

    def wanted(self, counts: Counts, steps: int, right: bool | None) -> list[int]:
        """All that are not known."""
        return [i for i in range(1, steps) if i not in counts]

    def labels(self, counts: Counts, steps: int, right: bool | None) -> list[float | None]:
        """Each prefix's own estimate."""
        known = [counts.get(i, Count()) for i in range(1, steps)]
        successes = torch.tensor([count.successes for count in known], dtype=torch.int64)
        rollouts = torch.tensor([count.rollouts for count in known], dtype=torch.int64)
        return [*_plain(self.estimate(successes, rollouts)), None if right is None else float(right)]

    @abstractmethod
    def estimate(self, successes: Tensor, rollouts: Tensor) -> Tensor:
        """(S - 1,) labels from right completions and all completions."""


class HardEstimation(Exhaustive):
    """1 if any completion is right."""

    def estimate(self, successes: Tensor, rollouts: Tensor) -> Tensor:
        """Math-Shepherd, Eq. 3."""
        return hard_step_labels(successes, rollouts)


class SoftEstimation(Exhaustive):
    """The share of right completions."""

    def estimate(self, successes: Tensor, rollouts: Tensor) -> Tensor:
        """Math-Shepherd, Eq. 4."""
        return soft_step_labels(successes, rollouts)


class BinarySearch(StepMethod):
    """Searches the first wrong step of a wrong solution; all steps of a right one are right, without a question."""

    def wanted(self, counts: Counts, steps: int, right: bool | None) -> list[int]:
        """The middle of what is left, if the solution is wrong."""
        probe = None if right is not False else next_probe(_good(counts), steps)
        return [] if probe is None else [probe]

    def labels(self, counts: Counts, steps: int, right: bool | None) -> list[float | None]:
        """Right before the first wrong step, wrong from it on; unknown where no completion could be judged."""
        if right is None:
            return [None] * steps
        good = _good(counts)
        if right:
            return _plain(search_step_labels(steps + 1, steps))
        return _plain(search_step_labels(first_wrong_step(good, steps), steps, last_right=last_right_step(good, steps)))


METHODS: dict[str, StepMethod] = {
    "hard": HardEstimation(),
    "soft": SoftEstimation(),
    "binary_search": BinarySearch(),
}
"""The methods by name."""


def _good(counts: Counts) -> dict[int, bool | None]:
    return {i: count.successes > 0 if count.rollouts else None for i, count in counts.items()}


def _plain(labels: Tensor) -> list[float | None]:
    return [None if math.isnan(label) else label for label in labels.tolist()]
