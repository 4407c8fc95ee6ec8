"""Maps of single rewards, before an advantage is made of them."""

from __future__ import annotations

import torch
from torch import Tensor


def clip_rewards(rewards: Tensor, *, low: float, high: float) -> Tensor:
    """Rewards held within bounds: ``min(max(r, low), high)``.

    Source: the paper, §3 ("additional reward clipping"); it gives no bounds.

    Args:
        rewards: Any shape.
        low: Lower bound, in the unit of the rewards; ``-inf`` for none.
        high: Upper bound; ``inf`` for none.

    Raises:
        ValueError: If ``low`` is above ``high``.
    """
    if not low <= high:
        raise ValueError(f"clip_rewards needs low <= high, got low={low} and high={high}")
    return rewards.clamp(low, high)


def asymmetric_shrink(rewards: Tensor, *, alpha: float) -> Tensor:
    """Negative rewards shrunk: ``alpha r`` where ``r < 0``, else ``r``.

    Source: the paper, §3.2, the unnumbered equation after Eq. 4, with alpha < 1 and no value given. Deviation: alpha
    may also be 1, which changes nothing, and must not be negative, which would reward the worst.

    Args:
        rewards: Any shape.
        alpha: Factor in [0, 1].

    Raises:
        ValueError: If ``alpha`` is out of range.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must be in [0, 1], got {alpha}")
    return rewards.where(rewards >= 0, alpha * rewards)


def soft_overlong(lengths: Tensor, *, max_length: int, buffer: int) -> Tensor:
    """DAPO's soft punishment of length: 0 up to ``max_length - buffer`` tokens, then linear, -1 from ``max_length`` on.

    ``(max_length - buffer - |y|) / buffer`` in between, held within [-1, 0].

    Source: DAPO (arXiv 2503.14476), Eq. 13, with ``L_max`` and ``L_cache``.

    Args:
        lengths: Response lengths in tokens, any shape.
        max_length: Length from which the punishment is full.
        buffer: Tokens over which it grows.

    Returns:
        Floating point, the shape of ``lengths``; to be added to the reward.

    Raises:
        ValueError: If ``1 <= buffer <= max_length`` does not hold.
    """
    if not 1 <= buffer <= max_length:
        raise ValueError(f"soft_overlong needs 1 <= buffer <= max_length, got buffer={buffer}, max_length={max_length}")
    return ((max_length - buffer - lengths) / torch.tensor(float(buffer))).clamp(-1, 0)
