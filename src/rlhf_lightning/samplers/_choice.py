"""From logits to tokens: greedy, or one draw of the tempered and truncated distribution.

Truncation keeps ties: where several tokens share the probability of the last one kept, all of them stay.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf_lightning.types import SamplingParams

_FIRST_LOOK = 128


def choose(logits: Tensor, uniform: Tensor, params: SamplingParams) -> tuple[Tensor, Tensor]:
    """The next tokens and what they were chosen with.

    Args:
        logits: (B, V), any float type.
        uniform: (B,) in [0, 1); not looked at when decoding greedily.
        params: Temperature 0 is greedy.

    Returns:
        (B,) int64 tokens and (B,) float32 probabilities: of the distribution drawn from, or of the untempered full
        one for greedy decoding. Where logits are NaN, or infinite above, the probability is NaN and the token anyone.
    """
    if params.temperature == 0:
        probs = torch.softmax(logits, dim=-1, dtype=torch.float32)
        tokens = logits.argmax(dim=-1)
    else:
        probs = distribution(logits, params)
        tokens = draw(probs, uniform)
    return tokens, probs.gather(1, tokens.unsqueeze(1)).squeeze(1)


def distribution(logits: Tensor, params: SamplingParams) -> Tensor:
    """Temperature, then top-k, then top-p over what top-k left; renormalised.

    Args:
        logits: (B, V).
        params: With a temperature above 0.

    Returns:
        (B, V) float32 probabilities that sum to 1 up to rounding; exactly 0 off the support.
    """
    if params.temperature != 1:
        logits = logits.float() / params.temperature
    if 0 < params.top_k < logits.shape[-1]:
        smallest = logits.topk(params.top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < smallest, -torch.inf)
    probs = torch.softmax(logits, dim=-1, dtype=torch.float32)
    if params.top_p < 1:
        probs = probs.masked_fill(probs < _nucleus_threshold(probs, params.top_p), 0.0)
        probs = probs / probs.sum(dim=-1, keepdim=True)
    return probs


def draw(probs: Tensor, uniform: Tensor) -> Tensor:
    """Inverse transform sampling: the first token whose cumulative probability exceeds ``u·Σp``.

    Args:
        probs: (B, V) float32, not negative; they need not sum to 1.
        uniform: (B,) in [0, 1).

    Returns:
        (B,) int64 tokens, never one of probability 0; anyone where the probabilities are NaN.
    """
    if probs.device.type == "cpu":
        return _draw_sequential(probs, uniform)
    return _draw_parallel(probs, uniform)


def _draw_sequential(probs: Tensor, uniform: Tensor) -> Tensor:
    """Where the running sum is taken in order it never falls, and stands still at a probability of 0."""
    cumulative = probs.cumsum(dim=-1)
    found = torch.searchsorted(cumulative, _share(uniform, cumulative[:, -1]), right=True).squeeze(1)
    return found.clamp_(max=probs.shape[-1] - 1)  # a sum that is NaN stands behind them all


def _draw_parallel(probs: Tensor, uniform: Tensor) -> Tensor:
    """Where it is taken in parallel, rounding may move it at a probability of 0, so those are left out."""
    cumulative = probs.cumsum(dim=-1) * (probs > 0)
    return (cumulative > _share(uniform, cumulative.amax(dim=-1))).to(torch.uint8).argmax(dim=-1)


def _share(uniform: Tensor, total: Tensor) -> Tensor:
    """(B, 1) ``u·total``, always below ``total``: no product with the largest float32 under 1 (1 - 2^-24) rounds up."""
    return (uniform * total).unsqueeze(1)


def _nucleus_threshold(probs: Tensor, top_p: float) -> Tensor:
    """(B, 1) probability of the last token that belongs to the smallest set reaching ``top_p``.

    Looks at the likeliest few tokens first: sorting a whole vocabulary costs more than a small model's step.
    """
    size = min(_FIRST_LOOK, probs.shape[-1])
    while True:
        ordered = probs.topk(size, dim=-1).values
        before = ordered.cumsum(dim=-1) - ordered
        inside = before < top_p
        if size == probs.shape[-1] or not bool(inside[:, -1].any()):
            return ordered.gather(1, (inside.sum(dim=-1, keepdim=True) - 1).clamp(min=0))  # NaN is inside nothing
        size = min(size * 8, probs.shape[-1])
