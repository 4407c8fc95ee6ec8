"""From losses per token to one number: which token weighs how much.

The weights are made once for a whole update, over all its micro-batches and ranks. The loss of a micro-batch is then
the plain sum of ``loss * weights``, and the gradient does not depend on how the update was split.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable

import torch
from torch import Tensor

_Denominator = float | Tensor | None


def aggregate(loss: Tensor, mask: Tensor, *, mode: str, denominator: _Denominator = None) -> Tensor:
    r"""The weighted sum of a loss per token: ``sum_{b,t} w_{b,t} loss_{b,t}``, see ``aggregation_weights``.

    Args:
        loss: (B, T) loss per token. Off the mask anything.
        mask: (B, T) bool, True on response tokens.
        mode: One of ``AGGREGATION_MODES``.
        denominator: Overrides the count that the mode divides by.

    Returns:
        A scalar; 0 when no token counts.

    Raises:
        ValueError: As ``aggregation_weights``.
    """
    weights = aggregation_weights(mask, mode=mode, denominator=denominator, dtype=loss.dtype)
    return (torch.where(mask, loss, 0) * weights).sum()


def aggregation_weights(
    mask: Tensor, *, mode: str, denominator: _Denominator = None, dtype: torch.dtype = torch.float32
) -> Tensor:
    """What each token's loss is multiplied with, so that the sum is the aggregated loss.

    With m the mask, n_b the tokens of sequence b, N their total and S the number of sequences that have any:

    ======================  =====================  ==============================================================
    mode                    weight of a token      source
    ======================  =====================  ==============================================================
    ``token-mean``          ``m / N``              DAPO (arXiv 2503.14476), Eq. 8
    ``seq-mean-token-mean`` ``m / (n_b S)``        GRPO (arXiv 2402.03300), Eq. 3
    ``seq-mean-token-sum``  ``m / S``              the policy gradient of whole sequences (REINFORCE, RLOO)
    ``constant``            ``m / denominator``    Dr. GRPO (arXiv 2503.20783): B times the longest allowed response
    ======================  =====================  ==============================================================

    Args:
        mask: (B, T) bool, True on response tokens. Empty rows are padding: they are not counted as sequences.
        mode: One of ``AGGREGATION_MODES``.
        denominator: Overrides N (``token-mean``) or S (``seq-*``) with the count over the whole update, when ``mask``
            is only a part of it; the constant itself for ``constant``, which needs it.
        dtype: Of the weights.

    Returns:
        (B, T), 0 off the mask.

    Raises:
        ValueError: If the mode is unknown, ``constant`` has no denominator, or the denominator is not above 0.
    """
    if mode not in _WEIGHTS:
        near = difflib.get_close_matches(mode, AGGREGATION_MODES, n=1, cutoff=0)
        raise ValueError(f"no aggregation mode {mode!r}: did you mean {near[0]!r}? One of {list(AGGREGATION_MODES)}")
    if denominator is not None and not denominator > 0:
        raise ValueError(f"denominator must be above 0, got {denominator}")
    return _WEIGHTS[mode](mask.to(torch.promote_types(dtype, torch.float32)), denominator).to(dtype)


def _token_mean(m: Tensor, tokens: _Denominator) -> Tensor:
    return m / (_at_least_one(m.sum()) if tokens is None else tokens)


def _seq_mean_token_mean(m: Tensor, sequences: _Denominator) -> Tensor:
    return _seq_mean_token_sum(m, sequences) / _at_least_one(m.sum(dim=1, keepdim=True))


def _seq_mean_token_sum(m: Tensor, sequences: _Denominator) -> Tensor:
    return m / (_at_least_one((m.sum(dim=1) > 0).sum()) if sequences is None else sequences)


def _constant(m: Tensor, constant: _Denominator) -> Tensor:
    if constant is None:
        raise ValueError("aggregation mode 'constant' needs a denominator")
    return m / constant


def _at_least_one(count: Tensor) -> Tensor:
    return count.clamp(min=1)


_WEIGHTS: dict[str, Callable[[Tensor, _Denominator], Tensor]] = {
    "token-mean": _token_mean,
    "seq-mean-token-mean": _seq_mean_token_mean,
    "seq-mean-token-sum": _seq_mean_token_sum,
    "constant": _constant,
}

AGGREGATION_MODES: tuple[str, ...] = tuple(_WEIGHTS)
"""The names that ``mode`` may have."""
