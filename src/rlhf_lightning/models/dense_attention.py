"""Attention of a small block in whole matrices: quicker there than the fused kernel, which is made for long sequences.

With P = softmax(s Q Kᵀ + M), which stays from the forward to the backward pass (Vaswani et al. 2017, Eq. 1):

    O = P V        dV = Pᵀ dO,   dS = P ∘ (dO Vᵀ - rowsum(P ∘ dO Vᵀ)),   dQ = s dS K,   dK = s dSᵀ Q
"""

from __future__ import annotations

import torch
from torch import Tensor

SMALL = 1 << 19
"""Probabilities of a block that is small: two MB of them are kept a layer and part of a row."""


def is_small(query: Tensor, key: Tensor) -> bool:
    """Whether a block of (n, H, L, D) queries and (n, H_kv, S, D) keys is computed here."""
    return query.shape[:3].numel() * key.shape[2] <= SMALL


def dense(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Attention, without gradient.

    Args:
        query: (n, H, L, D).
        key: (n, H_kv, S, D).
        value: As key.
        mask: (n or 1, 1, L, S) additive; every query sees a key.
        scale: What query-key products are multiplied with.

    Returns:
        (n, H, L, D), and the (n·H_kv, H/H_kv·L, S) probabilities for backward.
    """
    q, k, v = _rows(query, key), _flat(key), _flat(value)
    scores = torch.bmm(q * scale, k.mT)
    scores.view(*query.shape[:3], -1).add_(mask)
    probs = torch.softmax(scores, dim=-1)
    return torch.bmm(probs, v).view(query.shape), probs


def dense_backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, probs: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value, in their shapes.

    Args:
        grad: (n, H, L, D) of the output.
        query: As given to :func:`dense`.
        key: As given to it.
        value: As given to it.
        probs: As it returned.
        scale: As given to it.
    """
    above, q = _rows(grad, key), _rows(query, key)
    d_value = torch.bmm(probs.mT, above)
    d_scores = torch.bmm(above, _flat(value).mT)
    d_scores = torch._softmax_backward_data(d_scores, probs, -1, probs.dtype).mul_(scale)
    d_query, d_key = torch.bmm(d_scores, _flat(key)), torch.bmm(d_scores.mT, q)
    return d_query.view(query.shape), d_key.view(key.shape), d_value.view(value.shape)


def _rows(x: Tensor, key: Tensor) -> Tensor:
    """(n, H, L, D) to (n·H_kv, H/H_kv·L, D): the heads that share keys one after another."""
    return x.reshape(len(x) * key.shape[1], -1, x.shape[-1])


def _flat(x: Tensor) -> Tensor:
    return x.reshape(-1, *x.shape[2:])
