"""Baselines from the G responses to one prompt. Rewards are (B,) with B = P·G and groups contiguous.

A group whose rewards are all equal teaches nothing, and its result here is exactly 0: not rounding noise, which a
division by a tiny standard deviation would blow up. Equal means equal bit for bit, or within ``TOLERANCE`` roundings of
the largest magnitude in the group, since 0.1 + 0.2 and 0.3 are the same reward. Means and deviations are computed in
float64, so that a small spread around a large mean is not lost; results have the type of the rewards.
"""

from __future__ import annotations

import torch
from torch import Tensor

TOLERANCE = 8.0
"""Spread of a group's rewards, in units of its largest magnitude's rounding error, up to which they are all equal."""


def group_normalize(rewards: Tensor, *, group_size: int, eps: float = 1e-6) -> Tensor:
    r"""Standard score within each group: ``(r_i - mean(r)) / (std(r) + eps)``.

    Source: the paper, §3.2 (reward normalisation); DeepSeekMath (arXiv 2402.03300), §4.1.2. Both write std(r) of the
    sampled rewards themselves, so it is the **population** standard deviation (divided by G). Many implementations take
    the sample one (G - 1), whose results are smaller by ``sqrt((G - 1) / G)``. ``eps`` is in neither paper.

    Args:
        rewards: (B,) floating point.
        group_size: G. A group of 1 is all-equal: its result is 0.
        eps: Added to the standard deviation.

    Returns:
        (B,) without unit; exactly 0 in all-equal groups.

    Raises:
        ValueError: If B is not a multiple of G.
    """
    centered = group_center(rewards.double(), group_size=group_size).reshape(-1, group_size)
    equal = equal_groups(rewards, group_size=group_size).unsqueeze(1)
    variance = torch.where(equal, 1, centered.square().mean(dim=1, keepdim=True))
    return torch.where(equal, 0, centered / (variance.sqrt() + eps)).reshape(-1).to(rewards.dtype)


def group_center(rewards: Tensor, *, group_size: int) -> Tensor:
    """Rewards less their group's mean: ``r_i - mean(r)``.

    Source: Dr. GRPO (Liu et al., arXiv 2503.20783), which drops the division by the standard deviation.

    Args:
        rewards: (B,) floating point.
        group_size: G. A group of 1 gives 0.

    Returns:
        (B,) in the unit of the rewards; exactly 0 in all-equal groups.

    Raises:
        ValueError: If B is not a multiple of G.
    """
    groups = _groups(rewards, group_size)
    equal = equal_groups(rewards, group_size=group_size).unsqueeze(1)
    centered = groups - groups.double().mean(dim=1, keepdim=True)
    return torch.where(equal, 0, centered).reshape(-1).to(rewards.dtype)


def leave_one_out(rewards: Tensor, *, group_size: int) -> Tensor:
    """Rewards less the mean of the group's others: ``r_i - sum_{j != i} r_j / (G - 1)``.

    Computed as ``G / (G - 1) (r_i - mean(r))``, which is the same.

    Source: RLOO (Ahmadian et al., arXiv 2402.14740), §2.

    Args:
        rewards: (B,) floating point.
        group_size: G, at least 2.

    Returns:
        (B,) in the unit of the rewards; exactly 0 in all-equal groups.

    Raises:
        ValueError: If G is below 2, or B is not a multiple of G.
    """
    if group_size < 2:
        raise ValueError(f"leave_one_out needs at least 2 rewards a group, got group_size={group_size}")
    return group_center(rewards, group_size=group_size) * (group_size / (group_size - 1))


def length_weighted_center(rewards: Tensor, lengths: Tensor, *, group_size: int) -> Tensor:
    """Rewards less the mean that counts a response by its length: ``r_i - sum_j |y_j| r_j / sum_j |y_j|``.

    Source: OPO (Hao et al., arXiv 2505.23585), §3: the baseline of least gradient variance where the squared norm of a
    response's score function grows with its length. With equal lengths it is ``group_center``.

    Args:
        rewards: (B,) floating point.
        lengths: (B,) response lengths in tokens; not all 0 within a group.
        group_size: G. A group of 1 gives 0.

    Returns:
        (B,) in the unit of the rewards; exactly 0 in all-equal groups.

    Raises:
        ValueError: If B is not a multiple of G.
    """
    groups = _groups(rewards, group_size)
    weights = _groups(lengths.double(), group_size)
    baseline = (weights * groups).sum(dim=1, keepdim=True) / weights.sum(dim=1, keepdim=True).clamp(min=1)
    equal = equal_groups(rewards, group_size=group_size).unsqueeze(1)
    return torch.where(equal, 0, groups - baseline).reshape(-1).to(rewards.dtype)


def equal_groups(rewards: Tensor, *, group_size: int, spread: float = 0.0) -> Tensor:
    """Which groups have no two different rewards: ``max(r) - min(r) <= spread + TOLERANCE · rounding · max|r|``.

    Args:
        rewards: (B,) floating point.
        group_size: G.
        spread: Difference, in the unit of the rewards, up to which they count as the same beyond rounding.

    Returns:
        (P,) bool.

    Raises:
        ValueError: If B is not a multiple of G.
    """
    groups = _groups(rewards.detach(), group_size)
    return _all_equal(groups, torch.ones_like(groups, dtype=torch.bool), spread)


def _all_equal(rows: Tensor, mask: Tensor, spread: float = 0.0) -> Tensor:
    """(P,) whether the counted values of each row are the same."""
    rows = rows.detach()
    largest, least = rows.masked_fill(~mask, -torch.inf).amax(dim=1), rows.masked_fill(~mask, torch.inf).amin(dim=1)
    rounding = torch.finfo(rows.dtype).eps * torch.where(mask, rows, 0).abs().amax(dim=1)
    return (largest - least <= spread + TOLERANCE * rounding) & ~(rounding == torch.inf)


def _groups(rewards: Tensor, group_size: int) -> Tensor:
    if group_size < 1 or rewards.shape[0] % group_size:
        raise ValueError(f"{rewards.shape[0]} rewards do not make groups of {group_size}")
    return rewards.reshape(-1, group_size)
