"""Weights that correct for a sampler whose distribution is not the trainer's (another precision, engine, or support).

The gradient of the trainer's policy wants ``pi_trainer / pi_sampler`` on every sample; a few huge ratios would rule
it, so they are truncated or masked, at the price of a bias.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from rlhf_lightning.functional.sequence_ratio import sequence_log_ratio


def importance_log_weights(trainer: Tensor, sampler: Tensor, mask: Tensor, *, level: str) -> Tensor:
    r"""Logs of the raw weights, on tokens.

    ============= ============================================ ====================================================
    level         log w of a token                             source
    ============= ============================================ ====================================================
    ``token``     ``trainer_t - sampler_t``                    TIS (Yao et al. 2025, "Your efficient RL framework
                                                               secretly brings you off-policy RL training")
    ``sequence``  ``sum_s (trainer_s - sampler_s)``            the importance weight of the response; unbiased
    ``geometric`` ``sum_s (trainer_s - sampler_s) / |y|``      its |y|-th root, as GSPO (arXiv 2507.18071) has it
    ============= ============================================ ====================================================

    Args:
        trainer: (B, T) log-probs that the trainer's model gave before the update, nats per token.
        sampler: (B, T) log-probs that the sampler drew with.
        mask: (B, T) bool, True on response tokens.
        level: One of ``IMPORTANCE_LEVELS``.

    Returns:
        (B, T) nats, 0 off the mask.

    Raises:
        ValueError: If the level is unknown.
    """
    _check("level", level, _LEVELS)
    return torch.where(mask, _LEVELS[level](trainer, sampler, mask), 0)


def limit_weights(weights: Tensor, *, mode: str, low: float, high: float) -> Tensor:
    """Weights within bounds: ``truncate`` holds them there, ``mask`` makes those outside 0.

    Source: ``truncate`` with ``low=0`` is TIS (Yao et al. 2025; Ionides 2008); ``mask`` with both bounds is IcePop
    (Ling team 2025, "Small leak can sink a great ship").

    Args:
        weights: Any shape.
        mode: One of ``IMPORTANCE_MODES``.
        low: Lower bound; 0 is none.
        high: Upper bound; ``inf`` is none.

    Returns:
        The shape of ``weights``.

    Raises:
        ValueError: If the mode is unknown or ``0 <= low <= high`` does not hold.
    """
    _check("mode", mode, _MODES)
    if not 0 <= low <= high:
        raise ValueError(f"importance weights need 0 <= low <= high, got low={low} and high={high}")
    return _MODES[mode](weights, low, high)


def effective_sample_share(weights: Tensor) -> Tensor:
    """Kish's effective sample size as a share: ``(sum w)^2 / (N sum w^2)``, 1 where all weights are equal.

    Source: Kish, *Survey Sampling* (1965); usual for importance sampling.

    Args:
        weights: (N,) not negative.

    Returns:
        A scalar in [0, 1]; 0 where all weights are 0 or there are none.
    """
    squares = weights.square().sum() * weights.numel()
    return torch.where(squares > 0, weights.sum().square() / squares, 0)


def _token(trainer: Tensor, sampler: Tensor, mask: Tensor) -> Tensor:
    return trainer - sampler


def _sequence(trainer: Tensor, sampler: Tensor, mask: Tensor) -> Tensor:
    return sequence_log_ratio(trainer, sampler, mask, normalize=False)[:, None]


def _geometric(trainer: Tensor, sampler: Tensor, mask: Tensor) -> Tensor:
    return sequence_log_ratio(trainer, sampler, mask, normalize=True)[:, None]


def _mask_outside(weights: Tensor, low: float, high: float) -> Tensor:
    return torch.where((weights >= low) & (weights <= high), weights, 0)


def _check(what: str, name: str, known: dict[str, Callable[..., Tensor]]) -> None:
    if name not in known:
        raise ValueError(f"{what} must be one of {list(known)}, got {name!r}")


_LEVELS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "token": _token,
    "sequence": _sequence,
    "geometric": _geometric,
}
_MODES: dict[str, Callable[[Tensor, float, float], Tensor]] = {"truncate": torch.clamp, "mask": _mask_outside}

IMPORTANCE_LEVELS: tuple[str, ...] = tuple(_LEVELS)
"""The names that ``level`` may have."""

IMPORTANCE_MODES: tuple[str, ...] = tuple(_MODES)
"""The names that ``mode`` may have."""
