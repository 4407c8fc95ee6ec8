"""A decoder layer of the Llama family over a packed row on CPU, forward and backward by hand, in few large operations.

With N(x) the norm, R the rotation of queries and keys and A attention (``models.block_attention``):

    y = x + W_o A(R W_qkv N₁(x))        z = y + W_down (s(W_gate N₂(y)) · W_up N₂(y))

Kept for backward are x, y, the rotated queries, keys and values, attention's outputs and both halves of the MLP; norms,
s and the products of the two halves are computed again. Products go to the quicker library (``functional._products``),
which adds residuals as it writes. Rotary pairs are brought side by side by the order of the weights' rows, so that the
rotation is one complex product in place; scores do not see a common order of queries and keys.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from rlhf_lightning.functional._products import product, product_onto, weight_gradient
from rlhf_lightning.models.attention_layout import AttentionLayout
from rlhf_lightning.models.block_attention import Heads, attend, attend_backward, attended_row
from rlhf_lightning.models.lean_norm import norm, norm_again, norm_backward


@dataclass(frozen=True)
class Setting:
    """What a layer is told beside tensors.

    Attributes:
        heads: Of attention.
        layout: The packed row's.
        eps: Of both norms.
    """

    heads: Heads
    layout: AttentionLayout
    eps: float


class DecoderLayer(torch.autograd.Function):
    """(N, H) of the row to (N, H)."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        rotation: Tensor,
        setting: Setting,
        norm1: Tensor,
        wq: Tensor,
        wk: Tensor,
        wv: Tensor,
        bias: Tensor | None,
        wo: Tensor,
        norm2: Tensor,
        wg: Tensor,
        wu: Tensor,
        wd: Tensor,
    ) -> Tensor:
        """Bias is that of queries, keys and values in a row, or None; rotation is complex, (N, D/2)."""
        heads = setting.heads
        order = _fused_order(heads, x.device)
        normed, scale1 = norm(x, norm1, setting.eps)
        qkv = product(normed, torch.cat([wq, wk, wv]).index_select(0, order).t())
        if bias is not None:
            qkv.add_(bias.index_select(0, order))
        attended = attend(_rotated(qkv, rotation, heads), heads, setting.layout)
        y = product_onto(x, attended.out, wo.t())
        normed, scale2 = norm(y, norm2, setting.eps)
        gate, up = product(normed, wg.t()), product(normed, wu.t())
        trained = any(ctx.needs_input_grad)
        z = product_onto(y, F.silu(gate, inplace=not trained).mul_(up), wd.t())
        if not trained:
            return z
        outs = [part for pair in attended.outs for part in pair]
        weights = (norm1, wq, wk, wv, wo, norm2, wg, wu, wd)
        ctx.save_for_backward(rotation, *weights, x, scale1, attended.slots, y, scale2, gate, up, *outs)
        ctx.setting = setting
        return z

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x and of the weights that are trained."""
        rotation, norm1, wq, wk, wv, wo, norm2, wg, wu, wd, x, scale1, slots, y, scale2, gate, up, *rest = (
            ctx.saved_tensors
        )
        setting: Setting = ctx.setting
        wanted = dict(zip(_INPUTS, ctx.needs_input_grad, strict=True))
        outs = tuple(zip(rest[::2], rest[1::2], strict=True))
        d_y, of_mlp = _mlp_backward(grads[0].contiguous(), y, scale2, (norm2, wg, wu, wd), gate, up, wanted)
        d_x, of_attention = _attention_backward(
            d_y, x, scale1, (norm1, wq, wk, wv, wo), rotation, slots, outs, setting, wanted
        )
        found = {"x": d_x, **of_attention, **of_mlp}
        return tuple(found.get(name) for name in _INPUTS)


_INPUTS = ("x", "rotation", "setting", "norm1", "wq", "wk", "wv", "bias", "wo", "norm2", "wg", "wu", "wd")
_Gradients = dict[str, Tensor | None]


def _mlp_backward(
    grad: Tensor,
    y: Tensor,
    scale: Tensor,
    weights: tuple[Tensor, ...],
    gate: Tensor,
    up: Tensor,
    wanted: dict[str, bool],
) -> tuple[Tensor, _Gradients]:
    """Gradient of y, that through the residual included, and of the MLP's weights."""
    norm2, wg, wu, wd = weights
    active = F.silu(gate)
    d_hidden = product(grad, wd)
    d_up = d_hidden * active
    d_gate = torch.ops.aten.silu_backward(d_hidden.mul_(up), gate)
    del d_hidden
    found: _Gradients = {"wd": weight_gradient(grad, active.mul_(up)) if wanted["wd"] else None}
    del active
    normed = norm_again(y, norm2, scale)
    found["wg"] = weight_gradient(d_gate, normed) if wanted["wg"] else None
    found["wu"] = weight_gradient(d_up, normed) if wanted["wu"] else None
    d_normed = product_onto(product(d_gate, wg), d_up, wu)
    d_y, found["norm2"] = norm_backward(d_normed, y, norm2, scale, (True, wanted["norm2"]))
    assert d_y is not None
    return d_y.add_(grad), found


def _attention_backward(
    grad: Tensor,
    x: Tensor,
    scale: Tensor,
    weights: tuple[Tensor, ...],
    rotation: Tensor,
    slots: Tensor,
    outs: tuple[tuple[Tensor, Tensor], ...],
    setting: Setting,
    wanted: dict[str, bool],
) -> tuple[Tensor | None, _Gradients]:
    """Gradient of x, that through the residual included, and of attention's weights."""
    norm1, wq, wk, wv, wo = weights
    heads = setting.heads
    order = _fused_order(heads, x.device)
    found: _Gradients = {}
    if wanted["wo"]:
        found["wo"] = weight_gradient(grad, attended_row(outs, setting.layout).to(grad.dtype))
    d_qkv = attend_backward(product(grad, wo), slots, outs, heads, setting.layout)
    d_qkv = _rotated(d_qkv, rotation.conj_physical(), heads)
    if wanted["bias"]:
        found["bias"] = _unordered(d_qkv.sum(dim=0), order)
    if wanted["wq"] or wanted["wk"] or wanted["wv"]:
        fused = _unordered(weight_gradient(d_qkv, norm_again(x, norm1, scale)), order)
        found |= zip(("wq", "wk", "wv"), fused.split([len(wq), len(wk), len(wv)]), strict=True)
    if not (wanted["x"] or wanted["norm1"]):
        return None, found
    d_normed = product(d_qkv, torch.cat([wq, wk, wv]).index_select(0, order))
    d_x, found["norm1"] = norm_backward(d_normed, x, norm1, scale, (wanted["x"], wanted["norm1"]))
    return None if d_x is None else d_x.add_(grad), found


def _rotated(qkv: Tensor, rotation: Tensor, heads: Heads) -> Tensor:
    """Turns the pairs of queries and keys, in place unless the type is too narrow to hold a complex number."""
    turned = heads.queries + heads.keys
    wide = qkv.to(rotation.real.dtype)
    pairs = wide.view(len(qkv), turned + heads.keys, heads.dim // 2, 2)[:, :turned]
    torch.view_as_complex(pairs).mul_(rotation[:, None])
    return wide.to(qkv.dtype)


def _fused_order(heads: Heads, device: torch.device) -> Tensor:
    """Rows of the query, key and value weights, one under another, such that rotary pairs stand side by side."""
    turned = heads.queries + heads.keys
    rows = torch.arange((turned + heads.keys) * heads.dim, device=device).view(-1, heads.dim)
    pairs = rows[:turned].view(turned, 2, heads.dim // 2).transpose(1, 2).reshape(turned, heads.dim)
    return torch.cat([pairs, rows[turned:]]).flatten()


def _unordered(gradient: Tensor, order: Tensor) -> Tensor:
    """The rows back in the weights' own order."""
    return torch.empty_like(gradient).index_copy_(0, order, gradient)
