"""Means gathered over the micro-batches of a rollout."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torchmetrics import MeanMetric, SumMetric


class Means:
    """Token-weighted means and plain sums, by name, over many micro-batches (and ranks, through torchmetrics)."""

    def __init__(self) -> None:
        self._metrics: dict[str, MeanMetric | SumMetric] = {}

    def over_tokens(self, values: Mapping[str, Tensor], mask: Tensor) -> None:
        """Adds (b, T) values, each token counting once."""
        for name, value in values.items():
            self._get(name, MeanMetric, value.device).update(value.detach()[mask])

    def once(self, values: Mapping[str, Tensor]) -> None:
        """Adds one value each, all counting the same."""
        for name, value in values.items():
            self._get(name, MeanMetric, value.device).update(value.detach())

    def sums(self, values: Mapping[str, Tensor]) -> None:
        """Adds to a sum."""
        for name, value in values.items():
            self._get(name, SumMetric, value.device).update(value.detach())

    def pop(self) -> dict[str, float]:
        """All values by name; starts anew."""
        values = {name: float(metric.compute()) for name, metric in self._metrics.items()}
        self._metrics = {}
        return values

    def _get(self, name: str, kind: type, device: torch.device) -> MeanMetric | SumMetric:
        if name not in self._metrics:
            self._metrics[name] = kind().to(device)
        return self._metrics[name]
