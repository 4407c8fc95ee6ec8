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


def next_probe(good: Mapping[int, bool | None], steps: int) -> int | None:
    """The prefix to ask about next, in a binary search for the first wrong step (OmegaPRM, 2406.06592).

    A prefix is good if any of its completions is right. The empty prefix counts as good and the whole solution, of
    ``steps`` steps, is known to be wrong, so there is a first bad prefix if badness stays once it has come. Each answer
    halves what is left, and at most ⌈log2 steps⌉ prefixes are asked about. Where an answer was none (no completion
    could be judged), the prefix nearest to the middle that was not asked about takes its place.

    Args:
        good: What is known of prefixes, by their number of steps; None where there was no answer.
        steps: Steps of the solution, at least 1.

    Returns:
        Number of steps of a prefix not yet in ``good``, or None when the search is over.
    """
    return _searched(good, steps)[2]


def first_wrong_step(good: Mapping[int, bool | None], steps: int) -> int:
    """Where the search of :func:`next_probe` ends: the step (from 1) whose prefix is bad while the one before is good.

    If a good prefix can follow a bad one, it is one such step, not always the first. Where the prefix before it gave no
    answer, one of those behind :func:`last_right_step` may be the first wrong one instead.

    Args:
        good: What is known of prefixes, by their number of steps.
        steps: Steps of the solution, at least 1.

    Raises:
        ValueError: If the search is not over.
    """
    _, high, probe = _searched(good, steps)
    if probe is not None:
        raise ValueError(f"the search is not over: nothing is known of the prefix of {probe} steps")
    return high


def last_right_step(good: Mapping[int, bool | None], steps: int) -> int:
    """The last step that the search of :func:`next_probe` found to be right; 0 if none.

    Args:
        good: What is known of prefixes, by their number of steps.
        steps: Steps of the solution, at least 1.
    """
    return _searched(good, steps)[0]


def _searched(good: Mapping[int, bool | None], steps: int) -> tuple[int, int, int | None]:
    """A good and a bad prefix, as near as what is known brings the search, and the prefix to ask about next."""
    low, high = 0, steps
    while True:
        middle = (low + high) // 2
        nearest = sorted(range(low + 1, high), key=lambda i: abs(i - middle))
        probe = next((i for i in nearest if i not in good or good[i] is not None), None)
        if probe is None or probe not in good:
            return low, high, probe
        low, high = (probe, high) if good[probe] else (low, probe)


def search_step_labels(first_wrong: int, steps: int, *, last_right: int | None = None) -> Tensor:
    """``y_i = 1 if i < first_wrong else 0``: all is right before the first wrong step, and wrong from it on.

    OmegaPRM leaves the steps after the first wrong one without a label; here they count as wrong, like the outcome.

    Args:
        first_wrong: The first wrong step, from 1; ``steps + 1`` where none is.
        steps: S.
        last_right: The last step known to be right, where nothing is known of those between the two; when not given,
            the one before the first wrong one.

    Returns:
        (S,) float32; nan where nothing is known.
    """
    number = torch.arange(1, steps + 1)
    known = (number >= first_wrong) | (number <= (first_wrong - 1 if last_right is None else last_right))
    return torch.where(known, (number < first_wrong).float(), torch.nan)
