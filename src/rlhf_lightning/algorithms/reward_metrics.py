"""How well a reward model tells right from wrong and better from worse, over all tasks and for each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.classification import BinaryAccuracy, BinaryAUROC, BinaryCalibrationError, BinaryF1Score

from rlhf_lightning.reward_types import JudgedGroup, RenderedGroup, ResponseScore


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


CALIBRATION_BINS = 15


class RewardMetrics:
    """Gathers a reward model's scores of judged groups; :meth:`compute` gives the metrics.

    - ``pairwise_accuracy``: share of preference pairs ranked right; ties count half.
    - ``correctness_accuracy``: share of labelled responses with ``σ(final score) > ½`` exactly where they are right.
    - ``auroc``: of final scores, right responses against wrong ones.
    - ``calibration_error``: expected difference between σ(final score) and the share that is right, 15 bins.
    - ``correctness_loss``: mean cross-entropy of final scores against the labels, soft ones as they are, in nats.
    - ``step_f1``: of finding wrong steps among all labelled ones.
    - ``first_error_f1``, ``…_wrong``, ``…_right``: ProcessBench's; see :class:`FirstError`.

    A label of ½ or more counts as right. Metrics that nothing was seen for are left out: AUROC asks for both kinds of
    responses.

    Args:
        prefix: Stands before each metric's name.
    """

    def __init__(self, prefix: str = "held_out/") -> None:
        self.prefix = prefix
        self._all, self._by_task = _OneSet(), dict[str, _OneSet]()

    def update(self, groups: Sequence[RenderedGroup], scores: Sequence[Sequence[ResponseScore]]) -> None:
        """Adds groups with the scores of their responses."""
        for rendered, own in zip(groups, scores, strict=True):
            for metrics in (self._all, self._by_task.setdefault(rendered.group.task, _OneSet())):
                metrics.update(rendered.group, own)

    def compute(self) -> dict[str, float]:
        """``<prefix><metric>``, and with several tasks ``<prefix><metric>/<task>``."""
        found = {f"{self.prefix}{name}": value for name, value in self._all.compute().items()}
        for task, metrics in sorted(self._by_task.items()) if len(self._by_task) > 1 else ():
            found |= {f"{self.prefix}{name}/{task}": value for name, value in metrics.compute().items()}
        return found


class _OneSet:
    """The metrics of one set of groups: gathered as numbers, since a metric's update costs more than its arithmetic."""

    def __init__(self) -> None:
        self.pairs: list[tuple[float, float]] = []
        self.finals: list[tuple[float, float]] = []
        self.steps: list[tuple[float, float]] = []
        self.first_wrong: list[tuple[int, int]] = []

    def update(self, group: JudgedGroup, scores: Sequence[ResponseScore]) -> None:
        self.pairs += [(scores[pair.chosen].final, scores[pair.rejected].final) for pair in group.pairs]
        for response, score in zip(group.responses, scores, strict=True):
            if response.correct is not None:
                self.finals.append((score.final, response.correct))
            if response.steps and score.steps:
                self._add_steps(score.steps, [step.label for step in response.steps])

    def compute(self) -> dict[str, float]:
        found: dict[str, Tensor] = {}
        if self.pairs:
            found["pairwise_accuracy"] = _of(PairwiseAccuracy(), self.pairs)
        if self.finals:
            found |= _of_finals(*_columns(self.finals))
        if self.steps:
            logits, right = _columns(self.steps)
            found["step_f1"] = BinaryF1Score()((logits < 0).long(), (right < 0.5).long())
        if self.first_wrong:
            first = _of(FirstError(), self.first_wrong)
            found |= {f"first_error_{name}": value for name, value in first.items()}
        values = {name: float(value) for name, value in found.items()}
        return {name: value for name, value in values.items() if not math.isnan(value)}

    def _add_steps(self, scores: Sequence[float], labels: Sequence[float | None]) -> None:
        known = zip(scores, labels, strict=True)
        self.steps += [(score, label) for score, label in known if label is not None]
        target, predicted = first_wrong(labels), first_wrong(scores, threshold=0.0)
        if target is not None and predicted is not None:
            self.first_wrong.append((predicted, target))


def _of_finals(scores: Tensor, labels: Tensor) -> dict[str, Tensor]:
    probabilities, right = scores.sigmoid(), (labels >= 0.5).long()
    found = {
        "correctness_accuracy": BinaryAccuracy()(probabilities, right),
        "calibration_error": BinaryCalibrationError(n_bins=CALIBRATION_BINS, norm="l1")(probabilities, right),
        "correctness_loss": F.binary_cross_entropy_with_logits(scores, labels),
    }
    if not 0 < int(right.sum()) < len(right):
        return found
    ranks = scores.unique(return_inverse=True)[1] / len(scores)  # of equal scores, sigmoids can differ by a rounding
    return {**found, "auroc": BinaryAUROC()(ranks, right)}


def _of(metric: Metric, rows: Sequence[tuple[float, float]]) -> Any:
    return metric(*_columns(rows))


def _columns(rows: Sequence[tuple[float, float]]) -> list[Tensor]:
    return [torch.tensor(column, dtype=torch.float64) for column in zip(*rows, strict=True)]
