"""How well a reward model tells right from wrong and better from worse, over all tasks and for each."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torchmetrics import MeanMetric
from torchmetrics.classification import BinaryAccuracy, BinaryAUROC, BinaryCalibrationError, BinaryF1Score

from rlhf_lightning.metrics.pairs_and_steps import FirstError, PairwiseAccuracy, first_wrong
from rlhf_lightning.reward_types import JudgedGroup, RenderedGroup, ResponseScore

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
    """The metrics of one set of groups."""

    def __init__(self) -> None:
        self.pairwise = PairwiseAccuracy()
        self.final = {
            "correctness_accuracy": BinaryAccuracy(),
            "auroc": BinaryAUROC(),
            "calibration_error": BinaryCalibrationError(n_bins=CALIBRATION_BINS, norm="l1"),
        }
        self.loss, self.step_f1, self.first_error = MeanMetric(), BinaryF1Score(), FirstError()
        self.seen = {True: 0, False: 0}
        self.steps = 0

    def update(self, group: JudgedGroup, scores: Sequence[ResponseScore]) -> None:
        if group.pairs:
            final = torch.tensor([score.final for score in scores])
            chosen, rejected = ([getattr(pair, side) for pair in group.pairs] for side in ("chosen", "rejected"))
            self.pairwise.update(final[chosen], final[rejected])
        both = list(zip(group.responses, scores, strict=True))
        self._finals([(score.final, r.correct) for r, score in both if r.correct is not None])
        for response, score in both:
            if response.steps and score.steps:
                self._steps(score.steps, [step.label for step in response.steps])

    def compute(self) -> dict[str, float]:
        found: dict[str, Tensor] = {"pairwise_accuracy": self.pairwise.compute()} if self.pairwise.total else {}
        if any(self.seen.values()):
            found |= {name: metric.compute() for name, metric in self.final.items() if self._sees(name)}
            found["correctness_loss"] = self.loss.compute()
        if self.steps:
            found["step_f1"] = self.step_f1.compute()
        if self.first_error.total.any():
            found |= {f"first_error_{name}": value for name, value in self.first_error.compute().items()}
        values: Mapping[str, float] = {name: float(value) for name, value in found.items()}
        return {name: value for name, value in values.items() if not math.isnan(value)}

    def _sees(self, name: str) -> bool:
        return name != "auroc" or all(self.seen.values())

    def _finals(self, finals: Sequence[tuple[float, float]]) -> None:
        if not finals:
            return
        scores, labels = (torch.tensor(column, dtype=torch.float64) for column in zip(*finals, strict=True))
        right = labels >= 0.5
        for metric in self.final.values():
            metric.update(scores.sigmoid(), right.long())
        losses = torch.nn.functional.binary_cross_entropy_with_logits(scores, labels, reduction="none")
        self.loss.update(losses)
        self.seen[True] += int(right.sum())
        self.seen[False] += int((~right).sum())

    def _steps(self, scores: Sequence[float], labels: Sequence[float | None]) -> None:
        known = [(score, label) for score, label in zip(scores, labels, strict=True) if label is not None]
        if known:
            logits, right = (torch.tensor(column) for column in zip(*known, strict=True))
            self.step_f1.update((logits < 0).long(), (right < 0.5).long())
            self.steps += len(known)
        target = first_wrong(labels)
        if target is not None:
            predicted = first_wrong([1 / (1 + math.exp(-min(max(score, -500.0), 500.0))) for score in scores])
            self.first_error.update(torch.tensor([predicted]), torch.tensor([target]))
