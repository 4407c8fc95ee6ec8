"""One optimizer, named parameter groups, a learning rate that warms up and then holds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def named_groups(
    groups: Mapping[str, Iterable[nn.Parameter]], rates: Mapping[str, float] | None = None
) -> list[dict[str, Any]]:
    """Parameter groups with their names; what doesn't train is left out.

    Args:
        groups: Parameters by group name.
        rates: Learning rates by group name; the optimizer's own for groups that are not named.
    """
    trainable = {name: [p for p in parameters if p.requires_grad] for name, parameters in groups.items()}
    own = {name: {"lr": rate} for name, rate in (rates or {}).items()}
    return [{"name": name, "params": ps, **own.get(name, {})} for name, ps in trainable.items() if ps]


def warm_up(optimizer: Optimizer, updates: int) -> dict[str, Any]:
    """Linear warm-up over ``updates`` steps, then constant (the paper's schedule): a Lightning scheduler entry.

    Adam's first steps have full size whatever the gradient, so without warm-up they can break a policy.
    """
    schedule = LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / (updates + 1)))
    return {"scheduler": schedule, "interval": "step"}


def clip_by_group(optimizer: Optimizer, max_norm: float | None) -> dict[str, Tensor]:
    """Clips each named group by its own norm, in place; a joint norm would be ruled by the critic.

    Returns:
        The norms before clipping, by group name.
    """
    limit = float("inf") if max_norm is None else max_norm
    return {group["name"]: torch.nn.utils.clip_grad_norm_(group["params"], limit) for group in optimizer.param_groups}
