"""Attention over the blocks of a packed row on CPU, forward and backward by hand: what lean layers call.

The same computation as ``models.attention``, whose words for shapes are used here. Queries, keys and values stay side
by side in one tensor, and what backward needs is that tensor, the outputs and one number a query and head: keys and
values repeated for the responses of a prompt are made again from it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from rlhf_lightning.models.attention_layout import AttentionLayout


@dataclass(frozen=True)
class Heads:
    """How the columns of queries, keys and values are divided.

    Attributes:
        queries: H.
        keys: H_kv, of keys and of values each.
        dim: D.
        scale: What query-key products are multiplied with.
    """

    queries: int
    keys: int
    dim: int
    scale: float


class Attended(NamedTuple):
    """What a forward pass leaves.

    Attributes:
        out: (N, H·D) of the row.
        slots: (M, H + 2·H_kv, D) queries, keys and values, in float32 or wider.
        outs: For each block its output (n, H, L, D) and (n, H, L) log-sums of exponentials.
    """

    out: Tensor
    slots: Tensor
    outs: tuple[tuple[Tensor, Tensor], ...]


def attend(qkv: Tensor, heads: Heads, layout: AttentionLayout) -> Attended:
    """Attention of a packed row, without gradient.

    Args:
        qkv: (N, (H + 2·H_kv)·D), rotated.
        heads: How its columns are divided.
        layout: The blocks.
    """
    slots = _wide(qkv.index_select(0, layout.gather)).view(-1, heads.queries + 2 * heads.keys, heads.dim)
    outs = []
    for query, key, value, mask in _blocks(slots, heads, layout):
        outs.append(
            torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                query, key, value, 0.0, mask is None, attn_mask=mask, scale=heads.scale
            )
        )
    return Attended(attended_row(outs, layout).to(qkv.dtype), slots, tuple(outs))


def attended_row(
    outs: list[tuple[Tensor, Tensor]] | tuple[tuple[Tensor, Tensor], ...], layout: AttentionLayout
) -> Tensor:
    """(N, H·D) of the row from the blocks' outputs."""
    flat = torch.cat([out.transpose(1, 2).flatten(2).flatten(0, 1) for out, _ in outs])
    return flat.index_select(0, layout.scatter)


def attend_backward(
    grad: Tensor, slots: Tensor, outs: tuple[tuple[Tensor, Tensor], ...], heads: Heads, layout: AttentionLayout
) -> Tensor:
    """Gradient of ``qkv``.

    Args:
        grad: (N, H·D) gradient of the row.
        slots: As ``attend`` left them.
        outs: As ``attend`` left them.
        heads: As given to it.
        layout: As given to it.

    Returns:
        (N, (H + 2·H_kv)·D), in the type of ``grad``.
    """
    above = _wide(grad.index_select(0, layout.gather))
    if layout.padding is not None:
        above.masked_fill_(layout.padding, 0)
    gradient = torch.empty_like(slots)
    d_query, d_key, d_value = gradient.split([heads.queries, heads.keys, heads.keys], dim=1)
    size = layout.prompts[0] * layout.prompts[1]
    start = 0
    for number, (query, key, value, mask) in enumerate(_blocks(slots, heads, layout)):
        n, length = query.shape[0], query.shape[2]
        rows = slice(start, start + n * length)
        from_above = above[rows].view(n, length, heads.queries, heads.dim).transpose(1, 2)
        given = (from_above, query, key, value, *outs[number], 0.0, mask is None)
        dq, dk, dv = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            *given, attn_mask=mask, scale=heads.scale
        )
        d_query[rows].view(n, length, heads.queries, -1).copy_(dq.transpose(1, 2))
        for into, d in ((d_key, dk.transpose(1, 2)), (d_value, dv.transpose(1, 2))):
            into[rows].view(n, length, heads.keys, -1).copy_(d[:, -length:])
            if number:
                _add_to_prompts(
                    into[:size].view(*layout.prompts, heads.keys, -1), d, layout.responses[number - 1].prompts
                )
        start = rows.stop
    return gradient.flatten(1).index_select(0, layout.scatter).to(grad.dtype)


_Block = tuple[Tensor, Tensor, Tensor, Tensor | None]


def _blocks(slots: Tensor, heads: Heads, layout: AttentionLayout) -> Iterator[_Block]:
    """Queries, keys, values and mask of the prompts, then of each block of responses: (n, H or H_kv, L or S, D)."""
    shapes = [layout.prompts, *(block.shape for block in layout.responses)]
    parts = torch.split(slots, [n * length for n, length in shapes])
    queries, keys, values = zip(
        *(part.view(*shape, -1, heads.dim).split([heads.queries, heads.keys, heads.keys], dim=2)
          for part, shape in zip(parts, shapes, strict=True)),
        strict=True,
    )  # fmt: skip
    yield (*(x[0].transpose(1, 2) for x in (queries, keys, values)), None)  # type: ignore[misc]
    for number, block in enumerate(layout.responses, start=1):
        key, value = (torch.cat([_of(x[0], block.prompts), x[number]], dim=1) for x in (keys, values))
        yield queries[number].transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), block.mask.to(slots.dtype)


def _of(prompts: Tensor, index: Tensor | None) -> Tensor:
    return prompts if index is None else prompts.index_select(0, index)


def _add_to_prompts(prompts: Tensor, gradient: Tensor, index: Tensor | None) -> None:
    """Adds the (n, S, H_kv, D) gradient's share of the prompts to their (P', L, H_kv, D), in place."""
    share = gradient[:, : prompts.shape[1]]
    if index is None:
        prompts.add_(share)
    else:
        prompts.index_add_(0, index, share)


def _wide(x: Tensor) -> Tensor:
    """In float32 or wider: CPU's fused attention is slow backward in narrower types, and less exact."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
