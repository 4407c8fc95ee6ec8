"""A packed row in parts that never meet in attention, and the tokens of each that a layer must compute.

Groups do not see each other, so a stretch of whole groups passes through a layer by itself. And in a model's last layer
tokens whose final state nobody asks for (most of a prompt's) give keys and values, no queries: what they would compute
besides is thrown away.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rlhf_lightning.functional.packing import row_starts
from rlhf_lightning.models.attention_layout import AttentionLayout, Lengths, lay_out

MOST_IN_A_PART = 0.75
"""A row is only cut if no part gets more of it than this."""


@dataclass(frozen=True)
class Queries:
    """The K tokens of a part that ask, laid out in the blocks of its attention.

    Attributes:
        rows: (K,) which tokens they are, increasing; None when all do.
        spread: (N,) which of the K a token is, or K where it does not ask; None when all do.
        gather: (M,) which of the K stands in each slot.
        scatter: (K,) slot of each.
        unused: (M, 1) True on slots whose output nobody reads, or None without any.
        prompts: (P', L) shape of the block of prompts: all their tokens, or the last of each.
        prompt_mask: (P', 1, 1, S) additive mask of the prompts' last tokens; None is causal.
    """

    rows: Tensor | None
    spread: Tensor | None
    gather: Tensor
    scatter: Tensor
    unused: Tensor | None
    prompts: tuple[int, int]
    prompt_mask: Tensor | None

    def of(self, x: Tensor) -> Tensor:
        """(N, ...) to (K, ...)."""
        return x if self.rows is None else x.index_select(0, self.rows)

    def onto(self, x: Tensor, own: Tensor) -> Tensor:
        """Adds their (K, H) to x, (N, H), in place."""
        if self.spread is None:
            return x.add_(own)
        return x.add_(torch.cat([own, torch.zeros_like(own[:1])]).index_select(0, self.spread))


@dataclass(frozen=True)
class RowPart:
    """A stretch of the row.

    Attributes:
        tokens: Where it stands in the row.
        layout: Its own, as if it stood alone.
        queries: Its tokens that ask.
    """

    tokens: slice
    layout: AttentionLayout
    queries: Queries


def row_parts(layout: AttentionLayout, count: int, *, wanted: bool) -> tuple[RowPart, ...]:
    """The parts of a row, made once a row: up to ``count``, or one where its groups cannot be shared out evenly.

    Args:
        layout: Of the whole row.
        count: How many at most.
        wanted: Whether only those tokens ask that the layout says are wanted.
    """
    known: dict[tuple[int, bool], tuple[RowPart, ...]] = layout.__dict__.setdefault("_parts", {})
    if (count, False) not in known:
        known[count, False] = tuple(_part(layout, groups) for groups in shares(layout.lengths, count))
    if (count, wanted) not in known:
        known[count, wanted] = tuple(_wanted(part, layout.wanted) for part in known[count, False])
    return known[count, wanted]


def shares(lengths: Lengths, count: int) -> list[slice]:
    """Stretches of groups with about as many tokens each; all groups in one where that cannot be."""
    of_group = _tokens(lengths)
    count = min(count, len(of_group))
    ends = of_group.cumsum(0).double()
    cuts = [int((ends - ends[-1] * i / count).abs().argmin()) + 1 for i in range(1, count)]
    stretches = [slice(a, b) for a, b in zip([0, *cuts], [*cuts, len(of_group)], strict=True)]
    most = max(float(of_group[stretch].sum()) for stretch in stretches)
    if all(s.start < s.stop for s in stretches) and most <= MOST_IN_A_PART * float(ends[-1]):
        return stretches
    return [slice(0, len(of_group))]


def _part(layout: AttentionLayout, groups: slice) -> RowPart:
    own, tokens = _of_groups(layout.lengths, groups)
    whole = tokens == slice(0, len(layout.scatter))
    part = layout if whole else lay_out(own, layout.gather.device, layout.causal.dtype)
    return RowPart(tokens, part, Queries(None, None, part.gather, part.scatter, part.padding, part.prompts, None))


def _wanted(part: RowPart, wanted: Tensor | None) -> RowPart:
    """The part when only tokens at these positions of the row ask."""
    if wanted is None:
        return part
    rows = wanted[(wanted >= part.tokens.start) & (wanted < part.tokens.stop)] - part.tokens.start
    return replace(part, queries=_queries(part.layout, rows))


def _tokens(lengths: Lengths) -> Tensor:
    return lengths.prompts.index_add(0, lengths.group_of, lengths.responses)


def _of_groups(lengths: Lengths, groups: slice) -> tuple[Lengths, slice]:
    """The lengths of a stretch of groups, and where it stands in the row."""
    inside = (lengths.group_of >= groups.start) & (lengths.group_of < groups.stop)
    own = Lengths(lengths.prompts[groups], lengths.responses[inside], lengths.group_of[inside] - groups.start)
    start = int(_tokens(lengths)[: groups.start].sum())
    return own, slice(start, start + int(_tokens(own).sum()))


def _queries(layout: AttentionLayout, rows: Tensor) -> Queries:
    """Of some tokens of responses, and of last tokens of prompts."""
    prompts, length = layout.prompts
    lengths = layout.lengths.prompts
    last = row_starts(lengths, layout.lengths.responses, layout.lengths.group_of)[0] + lengths - 1
    slots = torch.cat([last.to(rows.device), layout.gather[prompts * length :]])
    spread = torch.full((len(layout.scatter),), len(rows), device=rows.device)
    spread[rows] = torch.arange(len(rows), device=rows.device)
    asker = spread[slots]
    if layout.padding is not None:
        asker[prompts:].masked_fill_(layout.padding[prompts * length :, 0], len(rows))
    used = asker < len(rows)
    scatter = torch.empty_like(rows)
    scatter[asker[used]] = used.nonzero().squeeze(1)
    return Queries(
        rows=rows,
        spread=spread,
        gather=asker.where(used, 0),
        scatter=scatter,
        unused=None if bool(used.all()) else ~used[:, None],
        prompts=(prompts, 1),
        prompt_mask=_last_mask(layout),
    )


def _last_mask(layout: AttentionLayout) -> Tensor:
    """(P', 1, 1, L): 0 on the prompts' tokens, -inf behind them."""
    lengths, causal = layout.lengths.prompts, layout.causal
    hidden = torch.arange(layout.prompts[1]) >= lengths[:, None]
    mask = torch.zeros(hidden.shape, dtype=causal.dtype).masked_fill_(hidden, float("-inf"))
    return mask[:, None, None].to(causal.device)
