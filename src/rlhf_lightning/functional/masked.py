"""Statistics over the places where a mask is True. What stands elsewhere, NaN included, changes nothing.

Sums are made in float64 and given back in the type of what is summed: a mean of equal values is that value, whatever
their number and size, and a small spread around a large mean is not lost.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf_lightning.functional.group import _all_equal


def masked_sum(x: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    """Sum of ``x`` where ``mask`` is True: ``sum_i m_i x_i``.

    Args:
        x: Any shape.
        mask: Bool, the shape of ``x``; True counts.
        dim: Dimension to sum over; None sums over all.
    """
    return _sum(x, mask, dim).to(x.dtype)


def masked_mean(x: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    """Mean of ``x`` where ``mask`` is True: ``sum_i m_i x_i / sum_i m_i``; 0 where nothing counts.

    Args:
        x: Any shape.
        mask: Bool, the shape of ``x``; True counts.
        dim: Dimension to average over; None averages over all.
    """
    return _mean(x, mask, dim).to(x.dtype)


def masked_var(x: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    """Population variance of ``x`` where ``mask`` is True: ``mean((x - mean(x))^2)``; 0 where nothing counts.

    Values that are all equal up to rounding, as ``equal_groups`` tells it, have exactly 0: nothing that divides by it,
    or asks whether there is any, is to see their rounding.

    Args:
        x: Any shape.
        mask: Bool, the shape of ``x``; True counts.
        dim: Dimension to reduce; None reduces all.
    """
    return _var(x, mask, dim).to(x.dtype)


def masked_whiten(x: Tensor, mask: Tensor, *, shift_mean: bool = True, eps: float = 1e-8) -> Tensor:
    """Values scaled to variance 1, over all places where ``mask`` is True: ``(x - mean) / sqrt(var + eps)``.

    Deviation from implementations that use the sample variance: ours is the population's, so a single value gives 0
    instead of NaN. Values that are all equal up to rounding (as in ``group``) give exactly 0 before the mean is put
    back: nothing is made of their rounding.

    Args:
        x: Any shape.
        mask: Bool, the shape of ``x``; True counts.
        shift_mean: False puts the mean back, so that only the scale changes.
        eps: Added to the variance.

    Returns:
        The shape of ``x``; 0 off the mask.
    """
    mean, equal = _mean(x, mask, None), _equal(x, mask, None)
    variance = torch.where(equal, 1, _var(x, mask, None) + eps)
    whitened = torch.where(equal, 0, (x.double() - mean) / torch.sqrt(variance))
    return torch.where(mask, whitened if shift_mean else whitened + mean, 0).to(x.dtype)


def _sum(x: Tensor, mask: Tensor, dim: int | None) -> Tensor:
    return torch.where(mask, x, 0).sum(dim=dim, dtype=torch.float64)


def _mean(x: Tensor, mask: Tensor, dim: int | None) -> Tensor:
    return _sum(x, mask, dim) / mask.sum(dim=dim).clamp(min=1)


def _var(x: Tensor, mask: Tensor, dim: int | None) -> Tensor:
    mean = _mean(x, mask, dim)
    squares = (x.double() - (mean if dim is None else mean.unsqueeze(dim))) ** 2
    return torch.where(_equal(x, mask, dim), 0, _mean(squares, mask, dim))


def _equal(x: Tensor, mask: Tensor, dim: int | None) -> Tensor:
    """Whether the counted values are all the same, one answer for each that a reduction over ``dim`` gives."""
    rows, counted = (part.reshape(-1) if dim is None else part.movedim(dim, -1) for part in (x, mask))
    if not rows.numel():
        return torch.ones(rows.shape[:-1], dtype=torch.bool, device=x.device)
    size = rows.shape[-1]
    return _all_equal(rows.reshape(-1, size), counted.reshape(-1, size)).reshape(rows.shape[:-1])


def last_true(mask: Tensor) -> Tensor:
    """A mask that is True only at the last True of each row: a response's last token, a solution's final step.

    Args:
        mask: (B, T) bool. Rows may be empty or have holes.

    Returns:
        (B, T) bool.
    """
    trues_after = mask.flip(-1).cumsum(-1).flip(-1)
    return mask & (trues_after == 1)
