"""Metrics of reward models that torchmetrics lacks: pairs ranked right, and the first wrong step found."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric


class PairwiseAccuracy(Metric):
    """Share of pairs whose chosen response scores higher: ``mean([R_c > R_r] + ½ [R_c = R_r])``.

    Margins of training don't matter. NaN without any pair.
    """

    higher_is_better = True
    right: Tensor
    total: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("right", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("total", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, chosen: Tensor, rejected: Tensor) -> None:
        """Adds (n,) scores of the chosen and of the rejected."""
        self.right += (chosen > rejected).sum() + 0.5 * (chosen == rejected).sum()
        self.total += len(chosen)

    def compute(self) -> Tensor:
        """The share, 0 to 1."""
        return self.right / self.total


class FirstError(Metric):
    """How well the earliest wrong step is found, as ProcessBench (arXiv 2412.06559, §3) measures it.

    Samples are kept apart: those with a wrong step count as right when the earliest one is named exactly, those
    without when none is named. F1 is the harmonic mean of both accuracies, so that a model which suspects everything,
    or nothing, gets 0. It is NaN as long as one kind of sample is missing.
    """

    higher_is_better = True
    hits: Tensor
    total: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("hits", torch.zeros(2, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("total", torch.zeros(2, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, predicted: Tensor, target: Tensor) -> None:
        """Adds (B,) numbers of the earliest wrong steps, from 0; −1 where there is none."""
        clean = (target < 0).long()
        self.total += torch.bincount(clean, minlength=2)
        self.hits += torch.bincount(clean[predicted == target], minlength=2)

    def compute(self) -> dict[str, Tensor]:
        """``f1``, and ``wrong`` and ``right``: the accuracies on samples with and without a wrong step."""
        wrong, right = self.hits / self.total
        f1 = 2 * wrong * right / (wrong + right).clamp(min=torch.finfo(wrong.dtype).tiny)
        return {"f1": f1, "wrong": wrong, "right": right}


def first_wrong(right: Sequence[float | None], threshold: float = 0.5) -> int | None:
    """The earliest step that is right with less than a threshold, in probability or as a score; −1 if there is none.

    Returns:
        Its number from 0, or None where an unknown step stands before it or among steps that are otherwise right.
    """
    for step, probability in enumerate(right):
        if probability is None:
            return None
        if probability < threshold:
            return step
    return -1
