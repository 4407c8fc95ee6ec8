"""What modules need to know of PyTorch's DistributedDataParallel, which Lightning's ``ddp`` is."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from rlhf_lightning.strategies.sharding import Sharding


class Replicated(Sharding):
    """Weights lie whole on every rank. Each backward waits for a gradient of every parameter that trains."""

    def touch(self, parameters: Iterable[nn.Parameter]) -> Tensor | float:
        """A sum over no elements of each, whose gradients are zeros."""
        return torch.stack([p.view(-1)[:0].sum() for p in parameters if p.requires_grad]).sum()
