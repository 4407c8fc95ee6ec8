"""Means and quantiles that are gathered over the micro-batches of a rollout and over ranks."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torchmetrics import CatMetric, MeanMetric, SumMetric

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


def quantiles(values: Tensor, places: Mapping[str, float]) -> dict[str, float]:
    """Values of the sample itself, the nearest from below, without ``torch.quantile``'s limit on their number.

    Args:
        values: (n,), at least one; NaN counts as larger than all.
        places: Shares in [0, 1] by name: 0 is the minimum, 1 the maximum.
    """
    ordered = values.sort().values
    return {name: float(ordered[int(share * (len(ordered) - 1))]) for name, share in places.items()}


class Quantiles:
    """Quantiles of the values of many micro-batches and ranks: four bytes are kept of each.

    Args:
        prefix: Stands before each quantile's name.
        places: Shares in [0, 1] by name.
    """

    def __init__(self, prefix: str, places: Mapping[str, float]) -> None:
        self.prefix, self.places = prefix, dict(places)
        self._values = CatMetric(nan_strategy="disable", sync_on_compute=False)

    def add(self, values: Tensor) -> None:
        """Adds (n,) values."""
        self._values = self._values.to(values.device)
        self._values.update(values.detach().float())

    def pop(self) -> dict[str, float]:
        """All quantiles by name, none where nothing was added; starts anew. All ranks call it."""
        own = self._values.compute().reshape(-1).cpu() if self._values.update_called else torch.zeros(0)
        self._values.reset()
        values = torch.cat(ranks.gathered(own))
        if not len(values):
            return {}
        return {f"{self.prefix}{name}": value for name, value in quantiles(values, self.places).items()}
