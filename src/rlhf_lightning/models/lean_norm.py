"""The norm of the Llama family in few passes over memory: ``w x (mean(x²) + eps)^-1/2`` and its gradients.

With r = (mean(x²) + eps)^-1/2, computed in float32 or wider, and g the gradient from above:

    y = w x r        dx = r (g w - x r mean(g w x r)),   dw = sum over rows of g x r
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class RMSNorm(torch.autograd.Function):
    """``w x (mean(x²) + eps)^-1/2`` (Zhang & Sennrich 2019, Eq. 4), in float32 where the inputs are narrower."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Saves x and one number a row."""
        normed, scale = norm(x, weight, eps)
        ctx.save_for_backward(x, weight, scale)
        return normed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        """Gradients of x and weight, as far as they are asked for."""
        x, weight, scale = ctx.saved_tensors
        return *norm_backward(grads[0], x, weight, scale, ctx.needs_input_grad[:2]), None


def norm(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The normed (..., H) and the (..., 1) scales r."""
    wide = x.to(_wide(x.dtype))
    scale = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()
    return (wide * scale).to(x.dtype).mul_(weight), scale


def norm_again(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """The normed (..., H) from the scales."""
    return (x.to(scale.dtype) * scale).to(x.dtype).mul_(weight)


def norm_backward(
    grad: Tensor, x: Tensor, weight: Tensor, scale: Tensor, wanted: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of x and weight, as far as wanted.

    LayerNorm's fused backward with a mean of 0; the term that only a real mean has is added back.
    """
    width = x.shape[-1]
    rows, above, w = (t.to(scale.dtype) for t in (x.reshape(-1, width), grad.reshape(-1, width), weight))
    scale = scale.view(-1, 1)
    given = (above.contiguous(), rows.contiguous(), [width], torch.zeros_like(scale), scale, w, None, [*wanted, False])
    dx, dw, _ = torch.ops.aten.native_layer_norm_backward(*given)
    if wanted[0]:
        dx = dx.add_(scale * (above @ w).div_(width)[:, None]).view(x.shape).to(x.dtype)
    return dx if wanted[0] else None, dw.to(weight.dtype) if wanted[1] else None


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
