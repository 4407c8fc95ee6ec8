"""Attention over the blocks of a packed row on CPU, forward and backward by hand: what lean layers call.

The same computation as ``models.attention``, whose words for shapes are used here. Keys and values stay side by side in
one tensor, and what backward needs is that tensor, the queries, the outputs and one number a query and head: keys and
values repeated for the responses of a prompt are made again from it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from rlhf_lightning.models.attention_layout import AttentionLayout
from rlhf_lightning.models.row_parts import Queries, RowPart


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
    """What a forward pass leaves for backward.

    Attributes:
        queries: (M', H, D) in slots, in float32 or wider.
        memory: (M, 2·H_kv, D) keys and values in slots, in float32 or wider.
        outs: For each block its output (n, H, L, D) and (n, H, L) log-sums of exponentials.
    """

    queries: Tensor
    memory: Tensor
    outs: tuple[tuple[Tensor, Tensor], ...]


def attend(query: Tensor, memory: Tensor, heads: Heads, part: RowPart) -> tuple[Tensor, Attended]:
    """Attention within a part of a packed row, without gradient.

    Args:
        query: (K, H·D) of the tokens that ask, rotated.
        memory: (N, 2·H_kv·D) keys, rotated, and values of all.
        heads: How the columns are divided.
        part: Its blocks.

    Returns:
        (K, H·D) of the tokens that ask, and what backward needs.
    """
    queries = _wide(query.index_select(0, part.queries.gather)).view(-1, heads.queries, heads.dim)
    slots = _wide(memory.index_select(0, part.layout.gather)).view(-1, 2 * heads.keys, heads.dim)
    outs = []
    for q, k, v, mask in _blocks(queries, slots, heads, part):
        outs.append(
            torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                q, k, v, 0.0, mask is None, attn_mask=mask, scale=heads.scale
            )
        )
    return attended_rows(outs, part.queries).to(query.dtype), Attended(queries, slots, tuple(outs))


def attended_rows(outs: Sequence[tuple[Tensor, Tensor]], queries: Queries) -> Tensor:
    """(K, H·D) of the tokens that ask, from the blocks' outputs."""
    flat = torch.cat([out.transpose(1, 2).flatten(2).flatten(0, 1) for out, _ in outs])
    return flat.index_select(0, queries.scatter)


def attend_backward(grad: Tensor, attended: Attended, heads: Heads, part: RowPart) -> tuple[Tensor, Tensor]:
    """Gradients of ``query`` and ``memory``.

    Args:
        grad: (K, H·D) gradient of the output.
        attended: As ``attend`` left it.
        heads: As given to it.
        part: As given to it.

    Returns:
        (K, H·D) and (N, 2·H_kv·D), in the type of ``grad``.
    """
    asking, layout = part.queries, part.layout
    above = _wide(grad.index_select(0, asking.gather)).view(-1, heads.queries, heads.dim)
    if asking.unused is not None:
        above.masked_fill_(asking.unused[..., None], 0)
    d_queries, d_memory = torch.empty_like(above), torch.empty_like(attended.memory)
    blocks = zip(_blocks(attended.queries, attended.memory, heads, part), attended.outs, strict=True)
    asked, held = _stretches(asking.prompts, layout), _stretches(layout.prompts, layout)
    prompts = d_memory[held[0]].view(*layout.prompts, 2 * heads.keys, -1)
    for number, ((q, k, v, mask), out) in enumerate(blocks):
        from_above = above[asked[number]].view(len(q), -1, heads.queries, heads.dim).transpose(1, 2)
        dq, dk, dv = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            from_above, q, k, v, *out, 0.0, mask is None, attn_mask=mask, scale=heads.scale
        )
        d_queries[asked[number]].view(len(q), -1, heads.queries, heads.dim).copy_(dq.transpose(1, 2))
        own = d_memory[held[number]].view(len(q), -1, 2 * heads.keys, heads.dim)
        for into, to_prompts, d in zip(own.chunk(2, 2), prompts.chunk(2, 2), (dk, dv), strict=True):
            d = d.transpose(1, 2)
            into.copy_(d[:, -own.shape[1] :])
            if number:
                _add_to_prompts(to_prompts, d, layout.responses[number - 1].prompts)
    d_query = d_queries.flatten(1).index_select(0, asking.scatter)
    return d_query.to(grad.dtype), d_memory.flatten(1).index_select(0, layout.scatter).to(grad.dtype)


_Block = tuple[Tensor, Tensor, Tensor, Tensor | None]


def _blocks(queries: Tensor, memory: Tensor, heads: Heads, part: RowPart) -> Iterator[_Block]:
    """Queries, keys, values and mask of the prompts, then of each block of responses: (n, H or H_kv, L or S, D)."""
    layout = part.layout
    asked = [queries[at] for at in _stretches(part.queries.prompts, layout)]
    (prompt_key, *own_keys), (prompt_value, *own_values) = (
        [x[at] for at in _stretches(layout.prompts, layout)] for x in memory.split(heads.keys, 1)
    )
    prompt_key, prompt_value = (x.view(*layout.prompts, heads.keys, heads.dim) for x in (prompt_key, prompt_value))
    first = asked[0].view(*part.queries.prompts, heads.queries, heads.dim), prompt_key, prompt_value
    mask = part.queries.prompt_mask
    yield (*(x.transpose(1, 2) for x in first), None if mask is None else mask.to(queries.dtype))  # type: ignore[misc]
    for block, query, key, value in zip(layout.responses, asked[1:], own_keys, own_values, strict=True):
        whole = [
            torch.cat([_of(prompt, block.prompts), own.view(*block.shape, heads.keys, heads.dim)], dim=1)
            for prompt, own in ((prompt_key, key), (prompt_value, value))
        ]
        q, k, v = (x.transpose(1, 2) for x in (query.view(*block.shape, heads.queries, heads.dim), *whole))
        yield q, k, v, block.mask.to(queries.dtype)


def _stretches(prompts: tuple[int, int], layout: AttentionLayout) -> list[slice]:
    """Where the slots of the prompts and of each block of responses stand, given the prompts' shape."""
    sizes = [n * length for n, length in (prompts, *(block.shape for block in layout.responses))]
    return [slice(end - size, end) for size, end in zip(sizes, accumulate(sizes), strict=True)]


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
