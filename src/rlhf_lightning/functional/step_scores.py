"""From the scores of a solution's steps to one number for the solution."""

from __future__ import annotations

import difflib
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from rlhf_lightning.functional.masked import last_true, masked_mean, masked_sum


def aggregate_steps(scores: Tensor, mask: Tensor, *, mode: str) -> Tensor:
    r"""One number a solution from the logits z_1 … z_S of its steps, the final one last.

    ===========  ==========================  ============  =====================================================
    mode         formula                     unit          source
    ===========  ==========================  ============  =====================================================
    ``last``     ``z_S``                     logit         paper, §3.1 (Snell et al. 2024, arXiv 2408.03314)
    ``min``      ``min_s z_s``               logit         Let's Verify Step by Step (arXiv 2305.20050), App. F
    ``product``  ``sum_s log sigmoid(z_s)``  nats          the same; the logarithm of the product of probabilities
    ``mean``     ``mean_s sigmoid(z_s)``     probability   –
    ===========  ==========================  ============  =====================================================

    Each mode orders the solutions of a problem; numbers of different modes cannot be compared. With one step, all modes
    order alike.

    Args:
        scores: (B, S) logits. Off the mask anything.
        mask: (B, S) bool, True on steps; at least one a row. Holes are left out.
        mode: One of ``STEP_AGGREGATIONS``.

    Returns:
        (B,) in the type of ``scores``; differentiable.

    Raises:
        ValueError: If the mode is unknown, the shapes differ, or a row has no step.
    """
    if mode not in _MODES:
        near = difflib.get_close_matches(mode, STEP_AGGREGATIONS, n=1, cutoff=0)
        raise ValueError(f"no step aggregation {mode!r}: did you mean {near[0]!r}? One of {list(STEP_AGGREGATIONS)}")
    if scores.ndim != 2 or scores.shape != mask.shape:
        raise ValueError(f"expected scores and mask of one shape (B, S), got {tuple(scores.shape)} {tuple(mask.shape)}")
    if not mask.any(dim=1).all():
        raise ValueError(f"solutions without a step: {(~mask.any(dim=1)).nonzero().flatten().tolist()}")
    return _MODES[mode](torch.where(mask, scores, 0), mask)


def _last(scores: Tensor, mask: Tensor) -> Tensor:
    return masked_sum(scores, last_true(mask), dim=1)


def _min(scores: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, scores, torch.inf).amin(dim=1)


def _product(scores: Tensor, mask: Tensor) -> Tensor:
    return masked_sum(F.logsigmoid(scores), mask, dim=1)


def _mean(scores: Tensor, mask: Tensor) -> Tensor:
    return masked_mean(torch.sigmoid(scores), mask, dim=1)


_MODES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "last": _last,
    "min": _min,
    "product": _product,
    "mean": _mean,
}

STEP_AGGREGATIONS: tuple[str, ...] = tuple(_MODES)
"""The names that ``mode`` may have."""
