"""Labels of reasoning steps from completions that were drawn after each of a solution's prefixes.

A prefix is a solution's first i steps; of N completions drawn after it, k came to the right answer.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def hard_step_labels(successes: Tensor, rollouts: Tensor) -> Tensor:
    """``y_i = 1 if k_i > 0 else 0``: whether any completion is right (Math-Shepherd, 2312.08935, Eq. 3).

    Args:
        successes: (S,) right completions k of each prefix.
        rollouts: (S,) completions N of each.

    Returns:
        (S,) float32; nan where there are no completions.
    """
    return torch.where(rollouts > 0, (successes > 0).float(), torch.nan)


def soft_step_labels(successes: Tensor, rollouts: Tensor) -> Tensor:
    """``y_i = k_i / N_i``: the share of right completions (Math-Shepherd, 2312.08935, Eq. 4).

    Args:
        successes: (S,) right completions k of each prefix.
        rollouts: (S,) completions N of each.

    Returns:
        (S,) float32; nan where there are no completions.
    """
    return torch.where(rollouts > 0, successes / rollouts.clamp(min=1), torch.nan).float()


def next_probe(good: Mapping[int, bool], steps: int) -> int | None:
    """The prefix to ask about next, in a binary search for the first wrong step (OmegaPRM, 2406.06592).

    A prefix is good if any of its completions is right. The empty prefix counts as good and the whole solution, of
    ``steps`` steps, is known to be wrong, so there is a first bad prefix if badness stays once it has come. Each answer
    halves what is left, and at most ⌈log2 steps⌉ prefixes are asked about.

    Args:
        good: What is known of prefixes, by their number of steps.
        steps: Steps of the solution, at least 1.

    Returns:
        Number of steps of a prefix not yet in ``good``, or None when the search is over.
    """
    low, high = _interval(good, steps)
    return (low + high) // 2 if high - low > 1 else None


def first_wrong_step(good: Mapping[int, bool], steps: int) -> int:
    """Where the search of :func:`next_probe` ends: the step (from 1) whose prefix is bad while the one before is good.

    If a good prefix can follow a bad one, it is one such step, not always the first.

    Args:
        good: What is known of prefixes, by their number of steps.
        steps: Steps of the solution, at least 1.

    Raises:
        ValueError: If the search is not over.
    """
    low, high = _interval(good, steps)
    if high - low > 1:
        raise ValueError(f"the search is not over: nothing is known of the prefix of {(low + high) // 2} steps")
    return high


def _interval(good: Mapping[int, bool], steps: int) -> tuple[int, int]:
    """A good and a bad prefix, as near to each other as what is known brings the search."""
    low, high = 0, steps
    while high - low > 1 and (middle := (low + high) // 2) in good:
        low, high = (middle, high) if good[middle] else (low, middle)
    return low, high


def search_step_labels(first_wrong: int, steps: int) -> Tensor:
    """``y_i = 1 if i < first_wrong else 0``: all is right before the first wrong step, and wrong from it on.

    OmegaPRM leaves the steps after the first wrong one without a label; here they count as wrong, like the outcome.

    Args:
        first_wrong: The first wrong step, from 1; ``steps + 1`` where none is.
        steps: S.

    Returns:
        (S,) float32.
    """
    return (torch.arange(1, steps + 1) < first_wrong).float()
