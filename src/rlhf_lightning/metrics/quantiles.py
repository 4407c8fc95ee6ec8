"""Quantiles of many values, exactly."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torchmetrics import CatMetric

from rlhf_lightning import ranks


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
