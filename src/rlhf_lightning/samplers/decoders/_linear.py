"""Matrix products for a few rows at a time, with the weight laid out for them once a sync.

Fixed rule, so that a run repeats: on CPU a weight of at least 2^18 elements is packed for oneDNN, in its own blocked
layout, and in float32 of 2^15 where oneDNN is the quicker library (``functional._products``); smaller ones (a tiny
model's) and other devices use torch.mm on the transposed weight, whose call costs less.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from rlhf_lightning.functional._products import products_kind

PACK_FROM = {"torch": 1 << 18, "onednn": 1 << 15}
"""Smallest number of elements for which packing is worth its dearer call, by the kind of products."""

_PACKED_TYPES = (torch.float32, torch.bfloat16)


class Linear(Protocol):
    """``x Wᵀ + b`` for 2-dimensional x."""

    def __call__(self, x: Tensor) -> Tensor:
        """(R, K) → (R, N)."""

    def onto(self, residual: Tensor, x: Tensor) -> Tensor:
        """``residual + x Wᵀ + b`` as a new (R, N)."""


class TransposedLinear:
    """torch.mm on Wᵀ, laid out row by row.

    Args:
        weight: (N, K).
        bias: (N,) or None.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._weight, self._bias = weight.t().contiguous(), bias

    def __call__(self, x: Tensor) -> Tensor:
        """(R, K) → (R, N)."""
        return torch.mm(x, self._weight) if self._bias is None else torch.addmm(self._bias, x, self._weight)

    def onto(self, residual: Tensor, x: Tensor) -> Tensor:
        """The product added to ``residual``."""
        product = torch.addmm(residual, x, self._weight)
        return product if self._bias is None else product + self._bias


class PackedLinear:
    """oneDNN on a packed weight.

    Args:
        weight: (N, K), float32 or bfloat16, on CPU.
        bias: (N,) or None.
        rows: How many rows the layout is chosen for; others work too.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, rows: int) -> None:
        self._weight, self._bias = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), rows), bias

    def __call__(self, x: Tensor) -> Tensor:
        """(R, K) → (R, N)."""
        return torch.ops.mkldnn._linear_pointwise.default(x, self._weight, self._bias, "none", [], "")  # type: ignore[no-any-return]

    def onto(self, residual: Tensor, x: Tensor) -> Tensor:
        """The product added to ``residual``."""
        return torch.ops.mkldnn._linear_pointwise.binary(x, residual, self._weight, self._bias, "add")  # type: ignore[no-any-return]


class AdaptedLinear:
    """``x Wᵀ + (x Aᵀ) Bᵀ + b`` as one product, ``[x, x Aᵀ] [W, B]ᵀ``: rounded once, when all of it is summed up.

    So 16 bits keep what adapters change, however little it is beside W.

    Args:
        weight: (N, K).
        down: (r, K) A.
        up: (N, r) B.
        bias: (N,) or None.
    """

    def __init__(self, weight: Tensor, down: Tensor, up: Tensor, bias: Tensor | None) -> None:
        self._down, self._whole = make_linear(down, None), make_linear(torch.cat([weight, up], dim=1), bias)

    def __call__(self, x: Tensor) -> Tensor:
        """(R, K) → (R, N)."""
        return self._whole(torch.cat([x, self._down(x)], dim=1))

    def onto(self, residual: Tensor, x: Tensor) -> Tensor:
        """The product added to ``residual``."""
        return self._whole.onto(residual, torch.cat([x, self._down(x)], dim=1))


def make_linear(weight: Tensor, bias: Tensor | None, *, rows: int = 32) -> Linear:
    """The faster kind for this weight, by the static rule above.

    Args:
        weight: (N, K); copied.
        bias: (N,) or None; kept as it is.
        rows: Typical number of rows.
    """
    packs = weight.device.type == "cpu" and weight.dtype in _PACKED_TYPES and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    kind = products_kind() if weight.dtype == torch.float32 else "torch"
    if packs and weight.numel() >= PACK_FROM[kind]:
        return PackedLinear(weight, bias, rows)
    return TransposedLinear(weight, bias)
