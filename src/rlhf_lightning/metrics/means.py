"""Means gathered over the micro-batches of a rollout."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torchmetrics import MeanMetric, SumMetric

from rlhf_lightning import ranks


class Means:
    """Token-weighted means and plain sums, by name, over many micro-batches and ranks."""

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
        """All values by name, over all ranks, whichever of them has seen the name; starts anew. All ranks call it."""
        own, self._metrics = {name: metric.cpu() for name, metric in self._metrics.items()}, {}
        first, *others = ranks.gathered(own)
        for other in others:
            for name, metric in other.items():
                first.setdefault(name, type(metric)(sync_on_compute=False)).merge_state(metric)
        return {name: float(metric.compute()) for name, metric in first.items()}

    def _get(self, name: str, kind: type, device: torch.device) -> MeanMetric | SumMetric:
        if name not in self._metrics:
            self._metrics[name] = kind(sync_on_compute=False).to(device)
        return self._metrics[name]
