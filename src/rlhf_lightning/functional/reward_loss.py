"""Losses of the reward model: preference pairs (Eq. 1) and correctness labels (Eq. 2). None reduces its batch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def preference_loss(chosen: Tensor, rejected: Tensor, margin: Tensor | float | None = None) -> Tensor:
    r"""Bradley-Terry loss of each pair: ``-log sigmoid(R_c - R_r - margin)``.

    Source: Eq. 1 of the paper, whose expectation is left to the caller; the margin: Llama 2 (arXiv 2307.09288), Eq. 2.

    Args:
        chosen: (B,) scores of the preferred responses, unbounded.
        rejected: (B,) scores of the others.
        margin: By how much the preferred must win, a number or (B,); None for 0.

    Returns:
        (B,) loss in nats per pair.
    """
    difference = chosen - rejected
    return -F.logsigmoid(difference if margin is None else difference - margin)


def centering_loss(chosen: Tensor, rejected: Tensor) -> Tensor:
    r"""Holds the scores of each pair around 0, which Eq. 1 leaves open: ``(R_c + R_r)^2``.

    Source: Eisenstein et al. 2023 (arXiv 2312.09244), whose coefficient is left to the caller.

    Args:
        chosen: (B,) scores of the preferred responses, unbounded.
        rejected: (B,) scores of the others.

    Returns:
        (B,) in squared units of the score.
    """
    return (chosen + rejected) ** 2


def correctness_loss(logits: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    r"""Binary cross-entropy of each labelled step: ``-y log p - (1 - y) log(1 - p)`` with ``p = sigmoid(logit)``.

    Source: Eq. 2 of the paper, first term, whose expectation is left to the caller. The mask chooses the steps: the
    final one (``last_true``) for an outcome reward model, all of them for a process reward model. Deviations: Eq. 2
    takes the logarithm of R itself, which Eq. 1 has as an unbounded score, so a sigmoid is understood; it is computed
    on the logits, where nothing overflows.

    Args:
        logits: (B, S) scores before the sigmoid, one a step.
        labels: (B, S) y: 0 or 1, or a probability (soft labels). Off the mask anything.
        mask: (B, S) bool, True on labelled steps.

    Returns:
        (B, S) loss in nats per step, 0 off the mask.
    """
    counted = torch.where(mask, labels, 0).to(logits.dtype)
    loss = F.softplus(logits) - counted * logits
    return torch.where(mask, loss, 0)
