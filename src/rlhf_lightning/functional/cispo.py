"""The policy gradient with clipped importance weights (CISPO)."""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf_lightning.functional.policy_loss import _check_bounds


def cispo_loss(new: Tensor, old: Tensor, advantages: Tensor, *, clip_low: float, clip_high: float) -> Tensor:
    r"""REINFORCE's loss, weighted with the clipped ratio.

    .. math::
        L_t = -\mathrm{sg}[\mathrm{clip}(\rho_t, 1 - \epsilon_{low}, 1 + \epsilon_{high})]\, A_t\, new_t,
        \qquad \rho_t = e^{new_t - old_t}

    with sg the value without gradient: the weight is clipped, and no token loses its gradient, as it would in
    ``clipped_policy_loss``.

    Source: MiniMax-M1, arXiv 2506.13585, §3.1. The paper has no lower bound, which is ``clip_low=1``, and reduces by
    ``token-mean``. Its loss, like any policy gradient's, says nothing by its value.

    Args:
        new: (...) log-probs under the policy being trained, nats per token.
        old: (...) log-probs under the policy that sampled.
        advantages: (...) A_t.
        clip_low: Largest step of the weight below 1; 1 is no bound.
        clip_high: Largest step of the weight above 1.

    Returns:
        (...) loss per token, to be minimised; not reduced.

    Raises:
        ValueError: If a bound is negative.
    """
    _check_bounds(clip_low, clip_high)
    weight = torch.exp(new.detach() - old).clamp(1 - clip_low, 1 + clip_high)
    return -weight * advantages * new
