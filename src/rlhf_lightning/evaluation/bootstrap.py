"""How far a mean over prompts might be off: percentile bootstrap intervals."""

from __future__ import annotations

import torch
from torch import Tensor

DRAWS = 2000
"""Resamples of the prompts."""


def bootstrap_interval(
    values: Tensor, *, level: float = 0.95, draws: int = DRAWS, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Percentile interval of the mean over prompts, from ``draws`` resamples of the prompts with replacement.

    All columns see the same resamples, so columns can be compared. For the difference of two scorers on the same
    prompts, give ``a - b``: an interval that leaves out 0 then speaks for a real difference. One prompt has an interval
    of no width: nothing is known of others.

    Source: Efron, *Bootstrap Methods: Another Look at the Jackknife* (1979); percentile method.

    Args:
        values: (P,) or (P, M), one row a prompt.
        level: Share of the resamples' means that the interval holds.
        draws: Resamples.
        seed: Of the resamples.

    Returns:
        Its low and its high end, () or (M,) float64.

    Raises:
        ValueError: If there is no prompt, or the level is not between 0 and 1.
    """
    if not len(values):
        raise ValueError("no prompts, so no mean")
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, got {level}")
    rows = values.double().cpu().reshape(len(values), -1)
    picked = torch.randint(len(rows), (draws, len(rows)), generator=torch.Generator().manual_seed(seed))
    times = torch.zeros(draws, len(rows), dtype=torch.float64)
    times.scatter_add_(1, picked, torch.ones_like(picked, dtype=torch.float64))
    means = times @ rows / len(rows)
    tail = (1 - level) / 2
    low, high = torch.quantile(means, torch.tensor([tail, 1 - tail], dtype=torch.float64), dim=0)
    return low.reshape(values.shape[1:]), high.reshape(values.shape[1:])
