"""The critic's loss per token."""

from __future__ import annotations

import torch
from torch import Tensor


def clipped_value_loss(values: Tensor, old_values: Tensor, returns: Tensor, *, clip: float | None) -> Tensor:
    r"""Half the squared error of the critic, held near its former values.

    .. math::
        L_t = \tfrac12 \max\big((V_t - R_t)^2,\ (\mathrm{clip}(V_t, V^{old}_t - c, V^{old}_t + c) - R_t)^2\big)

    Source: the reference implementation of PPO (Engstrom et al., arXiv 2005.12729, §3 "value function clipping"); the
    paper does not print its critic's loss. The factor one half is part of it.

    Args:
        values: (...) critic values V, with gradient.
        old_values: (...) the values when the rollout was made.
        returns: (...) targets R.
        clip: Largest step c of a value, in the unit of the rewards; None for plain squared error.

    Returns:
        (...) loss per token; not reduced.

    Raises:
        ValueError: If ``clip`` is negative.
    """
    if clip is None:
        return (values - returns) ** 2 / 2
    if clip < 0:
        raise ValueError(f"clip must not be negative, got {clip}")
    near = old_values + (values - old_values).clamp(-clip, clip)
    return torch.maximum((values - returns) ** 2, (near - returns) ** 2) / 2
