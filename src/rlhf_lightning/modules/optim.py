"""One optimizer, named parameter groups, a learning rate that warms up and then holds."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from rlhf_lightning.errors import ConfigError, NonFiniteError

_log = logging.getLogger(__name__)


def adamw(lr: float) -> partial[AdamW]:
    """What makes the optimizer where none is given: AdamW as OpenRLHF has it, without weight decay."""
    return partial(AdamW, lr=lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True)


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


def warm_up(optimizer: Optimizer, updates: int, delays: Mapping[str, int] | None = None) -> dict[str, Any]:
    """Linear warm-up over ``updates`` steps, then constant (the paper's schedule): a Lightning scheduler entry.

    Adam's first steps have full size whatever the gradient, so without warm-up they can break a policy.

    Args:
        optimizer: With named groups.
        updates: Steps of the warm-up.
        delays: Steps by group name before a group's warm-up begins, at a learning rate of 0; none for groups that are
            not named.
    """

    def factor(delay: int) -> Callable[[int], float]:
        return lambda step: min(1.0, max(0, step - delay + 1) / (updates + 1))

    factors = [factor((delays or {}).get(group["name"], 0)) for group in optimizer.param_groups]
    return {"scheduler": LambdaLR(optimizer, factors), "interval": "step"}


def made_optimizer(make: Callable[..., Optimizer], groups: list[dict[str, Any]]) -> Optimizer:
    """The optimizer of these groups.

    Raises:
        ConfigError: If it takes none of its arguments, or a learning rate is no finite number. Warns where one is 0.
    """
    try:
        optimizer = make(groups)
    except ValueError as error:
        raise ConfigError(f"optimizer: {error}") from error
    for group in optimizer.param_groups:
        rate = float(group["lr"])
        if not math.isfinite(rate):
            raise ConfigError(f"optimizer: the learning rate of {group['name']} is {rate}, not a finite number")
        if rate == 0:
            _log.warning("the learning rate of %s is 0: it will not train", group["name"])
    return optimizer


def checked_warmup(updates: int) -> int:
    """The updates of a warm-up as they are.

    Raises:
        ConfigError: If they are negative.
    """
    if updates < 0:
        raise ConfigError(f"warmup_updates must not be negative, got {updates}")
    return updates


def checked_norm(limit: float | None) -> float | None:
    """The limit of gradient norms as it is.

    Raises:
        ConfigError: If no gradient would be left of it.
    """
    if limit is not None and not limit > 0:
        raise ConfigError(f"max_grad_norm must be above 0, got {limit}: nothing would train. null is no limit")
    return limit


def not_finite(norms: Mapping[str, Tensor]) -> list[str]:
    """Names of the groups whose gradient norm is not finite."""
    return [name for name, norm in norms.items() if not bool(torch.isfinite(norm))]


class StepGuard:
    """Lets no step through whose gradient is not finite; ends the run when too many come in a row.

    A skipped step leaves weights and optimizer state as they were. What is counted in a row starts anew on a resume.

    Args:
        max_in_a_row: Skipped steps in a row that end the run.

    Raises:
        ConfigError: If it is below 1.
    """

    def __init__(self, max_in_a_row: int = 5) -> None:
        if max_in_a_row < 1:
            raise ConfigError(f"max_nonfinite_in_a_row must be at least 1, got {max_in_a_row}")
        self.max_in_a_row, self.in_a_row = max_in_a_row, 0

    def __call__(self, optimizer: Optimizer, norms: Mapping[str, Tensor]) -> bool:
        """Looks at the gradient norms of a step to come, and takes the gradients away where one is not finite.

        Returns:
            Whether the step is skipped.

        Raises:
            NonFiniteError: If it is the last that was allowed in a row.
        """
        bad = not_finite(norms)
        self.in_a_row = self.in_a_row + 1 if bad else 0
        if not bad:
            return False
        optimizer.zero_grad(set_to_none=True)
        if self.in_a_row >= self.max_in_a_row:
            raise NonFiniteError(
                f"the gradient of {' and '.join(bad)} was not finite in {self.in_a_row} updates in a row; they were "
                "skipped, and the last checkpoint holds weights from before. Look for infinite scores "
                "(score/nonfinite), then try a lower learning rate (max_nonfinite_in_a_row sets how many are too many)"
            )
        return True
