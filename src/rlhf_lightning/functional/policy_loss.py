"""The clipped surrogate objective, as a loss per token."""

from __future__ import annotations

import torch
from torch import Tensor


def clipped_policy_loss(
    new: Tensor,
    old: Tensor,
    advantages: Tensor,
    *,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None = None,
) -> Tensor:
    r"""PPO's clipped loss per token.

    .. math::
        \rho_t = e^{new_t - old_t}, \qquad
        L_t = -\min(\rho_t A_t,\ \mathrm{clip}(\rho_t, 1 - \epsilon_{low}, 1 + \epsilon_{high}) A_t)

    and, with dual clip c (Ye et al., arXiv 1912.09729), ``min(L_t, -c A_t)`` where ``A_t < 0``: the ratio of a bad
    token stops counting beyond c.

    Source: Eq. 4 of the paper; Schulman et al., arXiv 1707.06347, Eq. 7; separate bounds: DAPO (arXiv 2503.14476).
    Deviations from Eq. 4: it prints ``clip(ratio, A_t, 1 - eps, 1 + eps)``, which is a slip for
    ``clip(ratio, 1 - eps, 1 + eps) A_t``; it writes the ratio of whole outputs o beside a per-token A_t, where we take
    the ratio of each token, as PPO and GRPO do; it is maximised, and ours is its negative.

    The ratio is not clamped: a difference of log-probs above 88 overflows float32, and the infinity is there to be
    seen.

    Args:
        new: (...) log-probs under the policy being trained, nats per token.
        old: (...) log-probs under the policy that sampled.
        advantages: (...) A_t.
        clip_low: Largest step of the ratio below 1.
        clip_high: Largest step of the ratio above 1.
        dual_clip: c, above 1; None for none.

    Returns:
        (...) loss per token, to be minimised; not reduced.

    Raises:
        ValueError: If a bound is negative or ``dual_clip`` is not above 1.
    """
    _check_bounds(clip_low, clip_high)
    if dual_clip is not None and dual_clip <= 1:
        raise ValueError(f"dual_clip must be above 1, got {dual_clip}")
    ratio = torch.exp(new - old)
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high)
    loss = -torch.minimum(ratio * advantages, clipped * advantages)
    if dual_clip is None:
        return loss
    return torch.where(advantages < 0, torch.minimum(loss, -dual_clip * advantages), loss)


def _check_bounds(clip_low: float, clip_high: float) -> None:
    if clip_low < 0 or clip_high < 0:
        raise ValueError(f"clip bounds must not be negative, got clip_low={clip_low} and clip_high={clip_high}")
