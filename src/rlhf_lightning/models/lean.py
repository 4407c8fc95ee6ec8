"""Llama's norm and MLP in fewer passes over memory, for training on CPU: the same values and gradients up to rounding.

With H the width, x a row, w the norm's weight, g the gradient from above and s(a) = a·sigmoid(a):

    norm      r = (mean(x²) + eps)^-1/2,   y = w x r
              dx = r (g w - x r mean(g w x r)),   dw = sum over rows of g x r
    MLP       y = W (s(a) u),   a = gate(x),   u = up(x)
              dh = Wᵀ g,   du = dh s(a),   da = dh u s'(a),   dW = g (s(a) u)ᵀ

What transformers' own code keeps for backward beside the inputs (the normed row twice, s(a) and s(a) u) is computed
again from them: that is quicker than writing it out and reading it back, and a third of a layer's activations.

Only module classes that are known to compute just this are touched, and only calls on plain CPU tensors of one type:
under autocast, on other devices, on sharded weights or where an adapter sits, the module's own forward runs.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

NORMS = frozenset({"LlamaRMSNorm", "MistralRMSNorm", "Qwen2RMSNorm", "Qwen3RMSNorm"})
MLPS = frozenset({"LlamaMLP", "MistralMLP", "Qwen2MLP", "Qwen3MLP"})
"""Classes of transformers by name, so that none needs importing."""


def make_lean(model: nn.Module) -> nn.Module:
    """Gives the known modules of a model their lean forward, in place; calling it again changes nothing.

    Args:
        model: Any transformers model, before or after adapters are put in.
    """
    for module in model.modules():
        name = type(module).__name__
        if name in NORMS:
            module.forward = partial(norm_forward, module)
        elif name in MLPS and _is_silu(module.act_fn):
            module.forward = partial(mlp_forward, module)
    return model


def norm_forward(module: Any, hidden_states: Tensor) -> Tensor:
    """(..., H) to (..., H)."""
    if not _plain(hidden_states, module.weight):
        return type(module).forward(module, hidden_states)  # type: ignore[no-any-return]
    return RMSNorm.apply(hidden_states, module.weight, module.variance_epsilon)  # type: ignore[no-any-return,no-untyped-call]


def mlp_forward(module: Any, x: Tensor) -> Tensor:
    """(..., H) to (..., H)."""
    down = module.down_proj
    if type(down) is not nn.Linear or down.bias is not None or not _plain(x, down.weight):
        return type(module).forward(module, x)  # type: ignore[no-any-return]
    return GatedDown.apply(module.gate_proj(x), module.up_proj(x), down.weight)  # type: ignore[no-any-return,no-untyped-call]


class RMSNorm(torch.autograd.Function):
    """``w x (mean(x²) + eps)^-1/2`` (Zhang & Sennrich 2019, Eq. 4), in float32 where the inputs are narrower."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Saves x and one number a row."""
        wide = x.to(_wide(x.dtype))
        scale = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        return (wide * scale).to(x.dtype).mul_(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        """LayerNorm's fused backward with a mean of 0; the term that only a real mean has is added back."""
        saved: tuple[Tensor, Tensor, Tensor] = ctx.saved_tensors
        (x, weight, scale), width = saved, saved[0].shape[-1]
        rows, grad, w = (t.to(scale.dtype) for t in (x.reshape(-1, width), grads[0].reshape(-1, width), weight))
        scale = scale.view(-1, 1)
        wanted = [*ctx.needs_input_grad[:2], False]
        given = (grad.contiguous(), rows.contiguous(), [width], torch.zeros_like(scale), scale, w, None, wanted)
        dx, dw, _ = torch.ops.aten.native_layer_norm_backward(*given)
        if wanted[0]:
            dx = dx.add_(scale * (grad @ w).div_(width)[:, None]).view(x.shape).to(x.dtype)
        return dx if wanted[0] else None, dw.to(weight.dtype) if wanted[1] else None, None


class GatedDown(torch.autograd.Function):
    """``W (silu(gate) · up)`` (Shazeer 2020, Eq. 6, without its first two products)."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, weight: Tensor) -> Tensor:
        """Saves gate and up, not their product."""
        ctx.save_for_backward(gate, up, weight)
        return F.linear(F.silu(gate).mul_(up), weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Computes the product again for the gradient of W."""
        gate, up, weight = ctx.saved_tensors
        for_gate, for_up, for_weight = ctx.needs_input_grad
        grad = grads[0]
        active = F.silu(gate)
        d_gate = d_up = d_weight = None
        if for_gate or for_up:
            d_hidden = grad @ weight
            d_up = d_hidden * active if for_up else None
            d_gate = torch.ops.aten.silu_backward(d_hidden.mul_(up), gate) if for_gate else None
        if for_weight:
            hidden = active.mul_(up)
            d_weight = grad.reshape(-1, grad.shape[-1]).t() @ hidden.view(-1, hidden.shape[-1])
        return d_gate, d_up, d_weight


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _is_silu(activation: Any) -> bool:
    return isinstance(activation, nn.SiLU) or type(activation).__name__ == "SiLUActivation"


def _plain(x: Tensor, weight: Tensor) -> bool:
    """Whether both are ordinary CPU tensors of one type, outside autocast."""
    ordinary = type(x) in (Tensor, nn.Parameter) and type(weight) in (Tensor, nn.Parameter)
    return ordinary and x.device.type == "cpu" and x.dtype == weight.dtype and not torch.is_autocast_enabled("cpu")
