"""A decoder layer of the Llama family over a packed row on CPU, forward and backward by hand, in few large operations.

With N(x) the norm, R the rotation of queries and keys and A attention (``models.block_attention``):

    y = x + W_o A(R W_q N₁(x), R W_k N₁(x), W_v N₁(x))        z = y + W_down (s(W_gate N₂(y)) · W_up N₂(y))

The parts of a row (``models.row_parts``) are computed side by side, each by a thread of its own; in a model's last
layer everything but keys and values is computed for the tokens whose final state is asked for.

Kept for backward are x, y, the rotated queries, keys and values, attention's outputs and both halves of the MLP; norms,
s and the products of the two halves are computed again. Products go to the quicker library (``functional._products``),
which adds residuals as it writes. Rotary pairs are brought side by side by the order of the weights' rows, so that the
rotation is one complex product in place; scores do not see a common order of queries and keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial, reduce
from itertools import chain, islice
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from rlhf_lightning.functional._products import product, product_onto, weight_gradient
from rlhf_lightning.functional._side_by_side import side_by_side
from rlhf_lightning.models.block_attention import Attended, Heads, attend, attend_backward, attended_rows
from rlhf_lightning.models.lean_norm import norm, norm_again, norm_backward
from rlhf_lightning.models.row_parts import RowPart


@dataclass(frozen=True)
class Setting:
    """What a layer is told beside tensors.

    Attributes:
        heads: Of attention.
        parts: Of the packed row.
        eps: Of both norms.
    """

    heads: Heads
    parts: tuple[RowPart, ...]
    eps: float


class DecoderLayer(torch.autograd.Function):
    """(N, H) of the row to (K, H) of its tokens that ask."""

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
        weights = _fused(setting.heads, norm1, wq, wk, wv, bias, wo, norm2, wg, wu, wd)
        trained = any(ctx.needs_input_grad)
        forward = partial(_forward, x, rotation, weights, setting, trained)
        outs, kept = zip(*side_by_side([partial(forward, part) for part in setting.parts]), strict=True)
        if trained:
            tensors = [of_part.tensors() for of_part in kept]
            ctx.save_for_backward(x, rotation, norm1, wq, wk, wv, wo, norm2, wg, wu, wd, *chain(*tensors))
            ctx.setting, ctx.sizes = setting, [len(of_part) for of_part in tensors]
        return torch.cat(outs) if len(outs) > 1 else outs[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x and of the weights that are trained."""
        x, rotation, norm1, wq, wk, wv, wo, *rest = ctx.saved_tensors
        setting: Setting = ctx.setting
        weights = _fused(setting.heads, norm1, wq, wk, wv, None, wo, *rest[:4])
        wanted = dict(zip(_INPUTS, ctx.needs_input_grad, strict=True))
        backward = partial(_backward, x, rotation.conj_physical(), weights, setting, wanted)
        above = grads[0].contiguous().split([len(part.queries.scatter) for part in setting.parts])
        tensors = iter(rest[4:])
        kept = [_Kept.of(list(islice(tensors, size))) for size in ctx.sizes]
        of_parts = zip(above, setting.parts, kept, strict=True)
        found = _joined(side_by_side([partial(backward, *of_part) for of_part in of_parts]))
        separate = _separated(found, setting.heads)
        return tuple(separate.get(name) for name in _INPUTS)


_INPUTS = ("x", "rotation", "setting", "norm1", "wq", "wk", "wv", "bias", "wo", "norm2", "wg", "wu", "wd")
_Gradients = dict[str, Tensor]


class _Fused(NamedTuple):
    """The weights as the products take them: rotary pairs side by side, keys over values."""

    norm1: Tensor
    query: Tensor
    memory: Tensor
    query_bias: Tensor | None
    memory_bias: Tensor | None
    wo: Tensor
    norm2: Tensor
    wg: Tensor
    wu: Tensor
    wd: Tensor


class _Kept(NamedTuple):
    """What the forward pass of a part leaves for backward."""

    scale1: Tensor
    y: Tensor
    scale2: Tensor
    gate: Tensor
    up: Tensor
    attended: Attended

    def tensors(self) -> list[Tensor]:
        queries, memory, outs = self.attended
        return [*self[:-1], queries, memory, *chain(*outs)]  # type: ignore[list-item]

    @classmethod
    def of(cls, tensors: list[Tensor]) -> _Kept:
        *own, queries, memory = tensors[:7]
        outs = tuple(zip(tensors[7::2], tensors[8::2], strict=True))
        scale1, y, scale2, gate, up = own
        return cls(scale1, y, scale2, gate, up, Attended(queries, memory, outs))


def _fused(
    heads: Heads, norm1: Tensor, wq: Tensor, wk: Tensor, wv: Tensor, bias: Tensor | None, *rest: Tensor
) -> _Fused:
    query, key = (_pairs(heads, count, wq.device) for count in (heads.queries, heads.keys))
    of_query = of_memory = None
    if bias is not None:
        of_query, of_key, of_value = bias.split([len(wq), len(wk), len(wv)])
        of_query, of_memory = of_query[query], torch.cat([of_key[key], of_value])
    memory = torch.cat([wk.index_select(0, key), wv])
    return _Fused(norm1, wq.index_select(0, query), memory, of_query, of_memory, *rest)


def _forward(
    x: Tensor, rotation: Tensor, weights: _Fused, setting: Setting, trained: bool, part: RowPart
) -> tuple[Tensor, _Kept]:
    """(K, H) of a part of the row, and what backward needs."""
    heads, asking = setting.heads, part.queries
    x, rotation = x[part.tokens], rotation[part.tokens]
    normed, scale1 = norm(x, weights.norm1, setting.eps)
    query = _linear(asking.of(normed), weights.query, weights.query_bias)
    memory = _linear(normed, weights.memory, weights.memory_bias)
    query = _rotated(query, asking.of(rotation), heads.queries)
    out, attended = attend(query, _rotated(memory, rotation, heads.keys), heads, part)
    y = product_onto(asking.of(x), out, weights.wo.t())
    normed, scale2 = norm(y, weights.norm2, setting.eps)
    gate, up = product(normed, weights.wg.t()), product(normed, weights.wu.t())
    z = product_onto(y, F.silu(gate, inplace=not trained).mul_(up), weights.wd.t())
    return z, _Kept(scale1, y, scale2, gate, up, attended)


def _backward(
    x: Tensor,
    rotation: Tensor,
    weights: _Fused,
    setting: Setting,
    wanted: dict[str, bool],
    grad: Tensor,
    part: RowPart,
    kept: _Kept,
) -> _Gradients:
    """Gradients of a part's x and, as far as it goes, of the weights; rotation is the inverse one."""
    d_y, of_mlp = _mlp_backward(grad, weights, kept, wanted)
    place = x[part.tokens], rotation[part.tokens]
    return of_mlp | _attention_backward(d_y, *place, weights, setting, wanted, part, kept)


def _mlp_backward(grad: Tensor, weights: _Fused, kept: _Kept, wanted: dict[str, bool]) -> tuple[Tensor, _Gradients]:
    """Gradient of y, that through the residual included, and of the MLP's weights."""
    active = F.silu(kept.gate)
    d_hidden = product(grad, weights.wd)
    d_up = d_hidden * active
    d_gate = torch.ops.aten.silu_backward(d_hidden.mul_(kept.up), kept.gate)
    del d_hidden
    found: _Gradients = {}
    if wanted["wd"]:
        found["wd"] = weight_gradient(grad, active.mul_(kept.up))
    del active
    normed = norm_again(kept.y, weights.norm2, kept.scale2)
    found |= {name: weight_gradient(d, normed) for name, d in (("wg", d_gate), ("wu", d_up)) if wanted[name]}
    d_normed = product_onto(product(d_gate, weights.wg), d_up, weights.wu)
    d_y, d_norm = norm_backward(d_normed, kept.y, weights.norm2, kept.scale2, (True, wanted["norm2"]))
    assert d_y is not None
    return d_y.add_(grad), found | _given(norm2=d_norm)


def _attention_backward(
    grad: Tensor,
    x: Tensor,
    rotation: Tensor,
    weights: _Fused,
    setting: Setting,
    wanted: dict[str, bool],
    part: RowPart,
    kept: _Kept,
) -> _Gradients:
    """Gradient of x, that through the residual included, and of attention's weights."""
    heads, asking = setting.heads, part.queries
    found: _Gradients = {}
    if wanted["wo"]:
        found["wo"] = weight_gradient(grad, attended_rows(kept.attended.outs, asking).to(grad.dtype))
    d_query, d_memory = attend_backward(product(grad, weights.wo), kept.attended, heads, part)
    d_query = _rotated(d_query, asking.of(rotation), heads.queries)
    d_memory = _rotated(d_memory, rotation, heads.keys)
    if wanted["bias"]:
        found |= {"query_bias": d_query.sum(dim=0), "memory_bias": d_memory.sum(dim=0)}
    if wanted["wq"] or wanted["wk"] or wanted["wv"]:
        normed = norm_again(x, weights.norm1, kept.scale1)
        found["query"] = weight_gradient(d_query, asking.of(normed))
        found["memory"] = weight_gradient(d_memory, normed)
    if not (wanted["x"] or wanted["norm1"]):
        return found
    d_normed = asking.onto(product(d_memory, weights.memory), product(d_query, weights.query))
    d_x, d_norm = norm_backward(d_normed, x, weights.norm1, kept.scale1, (wanted["x"], wanted["norm1"]))
    return found | _given(norm1=d_norm, x=None if d_x is None else asking.onto(d_x, grad))


def _joined(found: Sequence[_Gradients]) -> _Gradients:
    """Of all parts: those of x one after another, those of weights added up."""
    first, *others = found
    if not others:
        return first
    sums = {name: reduce(Tensor.add_, [o[name] for o in others], first[name]) for name in first.keys() - {"x"}}
    return sums | ({"x": torch.cat([of_part["x"] for of_part in found])} if "x" in first else {})


def _separated(found: _Gradients, heads: Heads) -> _Gradients:
    """By input: the rows of fused weights and biases in their own order again."""
    separate = dict(found)
    for ending, names in (("", ("wq", "wk", "wv")), ("_bias", ("bq", "bk", "bv"))):
        if "query" + ending in found:
            d_query, d_memory = found["query" + ending], found["memory" + ending]
            query, key = (_pairs(heads, count, d_query.device) for count in (heads.queries, heads.keys))
            d_key, d_value = d_memory.chunk(2)
            separate |= zip(names, (_unordered(d_query, query), _unordered(d_key, key), d_value), strict=True)
    if "bq" in separate:
        separate["bias"] = torch.cat([separate[name] for name in ("bq", "bk", "bv")])
    return separate


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    out = product(x, weight.t())
    return out if bias is None else out.add_(bias)


def _rotated(x: Tensor, rotation: Tensor, heads: int) -> Tensor:
    """Turns the pairs of the first heads, in place unless the type is too narrow to hold a complex number."""
    wide = x.to(rotation.real.dtype)
    dim = 2 * rotation.shape[1]
    pairs = wide.view(len(x), -1, dim // 2, 2)[:, :heads]
    torch.view_as_complex(pairs).mul_(rotation[:, None])
    return wide.to(x.dtype)


def _pairs(heads: Heads, count: int, device: torch.device) -> Tensor:
    """Rows of so many heads' weights, such that rotary pairs stand side by side."""
    rows = torch.arange(count * heads.dim, device=device).view(count, 2, heads.dim // 2)
    return rows.transpose(1, 2).flatten()


def _unordered(gradient: Tensor, order: Tensor) -> Tensor:
    """The rows back in the weights' own order."""
    return torch.empty_like(gradient).index_copy_(0, order, gradient)


def _given(**gradients: Tensor | None) -> _Gradients:
    return {name: gradient for name, gradient in gradients.items() if gradient is not None}
