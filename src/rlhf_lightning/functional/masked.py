"""Statistics over the places where a mask is True. What stands elsewhere, NaN included, changes nothing."""

from __future__ import annotations

import torch
from torch import Tensor


def masked_sum(x: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    """Sum of ``x`` where ``mask`` is True: ``sum_i m_i x_i``.

    Args:
        x: Any shape.
        mask: Bool, the shape of ``x``; True counts.
        dim: Dimension to sum over; None sums over all.
    """
    return torch.where(mask, x, 0).sum(dim=dim)


def masked_mean(x: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    """Mean of ``x`` where ``mask`` is True: ``sum_i m_i x_i / sum_i m_i``; 0 where nothing counts.

    Args:
        x: Any shape.
        mask: Bool, the shape of ``x``; True counts.
        dim: Dimension to average over; None averages over all.
    """
    return masked_sum(x, mask, dim) / mask.sum(dim=dim).clamp(min=1)


def masked_var(x: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    """Population variance of ``x`` where ``mask`` is True: ``mean((x - mean(x))^2)``; 0 where nothing counts.

    Args:
        x: Any shape.
        mask: Bool, the shape of ``x``; True counts.
        dim: Dimension to reduce; None reduces all.
    """
    mean = masked_mean(x, mask, dim)
    return masked_mean((x - (mean if dim is None else mean.unsqueeze(dim))) ** 2, mask, dim)


def masked_whiten(x: Tensor, mask: Tensor, *, shift_mean: bool = True, eps: float = 1e-8) -> Tensor:
    """Values scaled to variance 1, over all places where ``mask`` is True: ``(x - mean) / sqrt(var + eps)``.

    Deviation from implementations that use the sample variance: ours is the population's, so a single value gives 0
    instead of NaN.

    Args:
        x: Any shape.
        mask: Bool, the shape of ``x``; True counts.
        shift_mean: False puts the mean back, so that only the scale changes.
        eps: Added to the variance; bounds the result where all values are equal.

    Returns:
        The shape of ``x``; 0 off the mask.
    """
    mean = masked_mean(x, mask)
    whitened = (x - mean) / torch.sqrt(masked_var(x, mask) + eps)
    return torch.where(mask, whitened if shift_mean else whitened + mean, 0)


def last_true(mask: Tensor) -> Tensor:
    """A mask that is True only at the last True of each row: a response's last token, a solution's final step.

    Args:
        mask: (B, T) bool. Rows may be empty or have holes.

    Returns:
        (B, T) bool.
    """
    trues_after = mask.flip(-1).cumsum(-1).flip(-1)
    return mask & (trues_after == 1)
