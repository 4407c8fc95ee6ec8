"""Discounted sums over time: returns and generalised advantages. Time is the last dimension, in response tokens.

Places off the mask are stepped over: they neither discount nor interrupt. So padding may stand on either side, and a
response may have holes (tokens of a tool, say). Nothing follows the last counted token, so its next value is 0; where a
response was only cut off at its limit, another value may be given for what would have followed.
"""

from __future__ import annotations

import torch
from torch import Tensor


def gae(
    rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float, lam: float, bootstrap: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    r"""Generalised advantage estimation (Schulman et al., arXiv 1506.02438, Eq. 16).

    .. math::
        \delta_t = r_t + \gamma V_{t+1} - V_t, \qquad A_t = \sum_{l \ge 0} (\gamma\lambda)^l \delta_{t+l}, \qquad
        R_t = A_t + V_t

    With T the last token, :math:`V_{T+1}` is ``bootstrap``: 0 where the response ended, the critic's value after the
    last token where a limit cut it off (partial-episode bootstrapping, Pardo et al., arXiv 1712.00378, Eq. 6).

    Args:
        rewards: (B, T) rewards on tokens.
        values: (B, T) critic values V, each before its token was drawn.
        mask: (B, T) bool, True on response tokens.
        gamma: Discount a token, in [0, 1].
        lam: lambda, in [0, 1]: 0 trusts the critic, 1 the sampled return.
        bootstrap: (B,) values after each response's last token; 0 when not given.

    Returns:
        Advantages A and returns R, the critic's targets; both (B, T), 0 off the mask. Not whitened.

    Raises:
        ValueError: If ``gamma`` or ``lam`` is out of range.
    """
    _check_fraction("gamma", gamma)
    _check_fraction("lam", lam)
    deltas = rewards + gamma * _next_counted(values, mask, bootstrap) - values
    advantages = discounted_returns(deltas, mask, gamma=gamma * lam)
    return advantages, torch.where(mask, advantages + values, 0)


def discounted_returns(rewards: Tensor, mask: Tensor, *, gamma: float) -> Tensor:
    r"""Discounted sum of the rewards from each token on: ``R_t = sum_l gamma^l r_{t+l}``.

    Args:
        rewards: (B, T) rewards on tokens.
        mask: (B, T) bool, True on response tokens.
        gamma: Discount a token, in [0, 1].

    Returns:
        (B, T), 0 off the mask.

    Raises:
        ValueError: If ``gamma`` is out of range.
    """
    _check_fraction("gamma", gamma)
    return torch.where(mask, _backward_scan(rewards, mask, gamma), 0)


def _next_counted(values: Tensor, mask: Tensor, last: Tensor | None) -> Tensor:
    """The value at the next counted place after each; after the last one 0, or what is given."""
    after_all = values.new_zeros(values.shape[:-1]) if last is None else last.to(values)
    from_here_on = _backward_scan(values, mask, decay=0.0, after=after_all)
    return torch.cat([from_here_on[..., 1:], after_all[..., None]], dim=-1)


def _backward_scan(x: Tensor, mask: Tensor, decay: float, after: Tensor | None = None) -> Tensor:
    """``y_t = x_t + decay y_{t+1}`` where the mask is True, else ``y_t = y_{t+1}``; ``after`` (0) follows the last."""
    carry = x.new_zeros(x.shape[:-1]) if after is None else after
    scanned = []
    for x_t, mask_t in zip(reversed(x.unbind(-1)), reversed(mask.unbind(-1)), strict=True):
        carry = torch.where(mask_t, x_t + decay * carry, carry)
        scanned.append(carry)
    return torch.stack(scanned[::-1], dim=-1) if scanned else x


def _check_fraction(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must be in [0, 1], got {value}")
