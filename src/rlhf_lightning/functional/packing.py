"""Packing without padding: each prompt once, its responses behind it, and what stands in which micro-batch.

A row of N tokens holds, for each group, the prompt and then every response without its last token (from which nothing
is predicted). A group that is cut over several rows repeats its prompt in each of them. The order of tokens within a
row and the split over rows change neither log-probs nor the summed gradient, only the time and the memory taken.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf_lightning.types import PackedSequences


@dataclass(frozen=True)
class GroupPiece:
    """A group, or those of its responses that share a row.

    Attributes:
        group: Which group.
        responses: Positions of the responses within the group, increasing.
    """

    group: int
    responses: tuple[int, ...]


def pack_groups(
    prompts: Sequence[Sequence[int]],
    tokens: Tensor,
    mask: Tensor,
    *,
    exists: Tensor | None = None,
    group_of: Tensor | None = None,
) -> PackedSequences:
    """Lays prompts and their responses end to end in one row, each prompt once.

    Response token t of a response to a prompt of p tokens stands at position p + t, as if the two stood alone; it is
    predicted by the token before it, the first one by the prompt's last token.

    Args:
        prompts: P' prompts of at least one token each.
        tokens: (b, T) response token ids, right-padded.
        mask: (b, T) bool, True on the response tokens that are predicted. Where ``exists`` is given it may have holes.
        exists: (b, T) bool, True on all tokens of the responses, up to each one's length; ``mask`` when not given. A
            token that only exists stands in the row and is attended to, but is no target.
        group_of: (b,) int64, which prompt each response answers, non-decreasing; groups of equal size when not given.

    Returns:
        The packed row, on the device of ``tokens``.

    Raises:
        ValueError: If a prompt is empty, a response has a hole or a target that does not exist, or the groups do not
            fit the responses.
    """
    group_of = _equal_groups(len(prompts), len(tokens)) if group_of is None else group_of.cpu()
    exists = mask if exists is None else exists
    _check(prompts, tokens, mask, exists, group_of)
    device, tokens, mask, exists = tokens.device, tokens.cpu(), mask.cpu(), exists.cpu()
    prompt_lengths = torch.tensor([len(prompt) for prompt in prompts], dtype=torch.int64)
    standing = (exists.sum(dim=1) - 1).clamp(min=0)
    prompt_start, response_start = row_starts(prompt_lengths, standing, group_of)
    time = torch.arange(tokens.shape[1])
    in_row = time < standing[:, None]
    row_index = response_start[:, None] + time
    predicted_by = torch.where(time == 0, (prompt_start + prompt_lengths - 1)[group_of][:, None], row_index - 1)
    ids, positions = (torch.empty(int(prompt_lengths.sum() + standing.sum()), dtype=torch.int64) for _ in range(2))
    within = torch.cat([torch.arange(len(prompt)) for prompt in prompts])
    prompt_index = prompt_start.repeat_interleave(prompt_lengths) + within
    ids[prompt_index] = torch.tensor([token for prompt in prompts for token in prompt], dtype=torch.int64)
    positions[prompt_index] = within
    ids[row_index[in_row]] = tokens[in_row]
    positions[row_index[in_row]] = (prompt_lengths[group_of][:, None] + time)[in_row]
    parts = (ids, positions, prompt_lengths, standing, group_of, predicted_by[mask], tokens[mask], mask)
    return PackedSequences(*(part.to(device) for part in parts))


def row_starts(prompt_lengths: Tensor, response_lengths: Tensor, group_of: Tensor) -> tuple[Tensor, Tensor]:
    """Where each prompt and each response begins in a packed row.

    Args:
        prompt_lengths: (P',) prompt tokens a group.
        response_lengths: (b,) tokens of each response that stand in the row.
        group_of: (b,) non-decreasing.

    Returns:
        (P',) starts of prompts and (b,) starts of responses.
    """
    of_group = torch.zeros_like(prompt_lengths).index_add_(0, group_of, response_lengths)
    prompt_ends = prompt_lengths.cumsum(0)
    prompt_start = prompt_ends - prompt_lengths + of_group.cumsum(0) - of_group
    return prompt_start, prompt_ends[group_of] + response_lengths.cumsum(0) - response_lengths


def balanced_bins(sizes: Sequence[int], *, n_bins: int) -> list[list[int]]:
    """Partitions items into bins of nearly equal total size: the largest first, each into the emptiest bin.

    The fullest bin is at most 4/3 of the best possible one (Graham, 1969). Deterministic: ties go by index.

    Args:
        sizes: Size of each item, above 0.
        n_bins: Number of bins, none of which stays empty.

    Returns:
        ``n_bins`` lists of increasing item indices.

    Raises:
        ValueError: If there are fewer items than bins.
    """
    if not 1 <= n_bins <= len(sizes):
        raise ValueError(f"cannot fill {n_bins} bins with {len(sizes)} items")
    bins: list[list[int]] = [[] for _ in range(n_bins)]
    loads = [(0, index) for index in range(n_bins)]
    for item in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        load, emptiest = loads[0]
        bins[emptiest].append(item)
        heapq.heapreplace(loads, (load + sizes[item], emptiest))
    return [sorted(items) for items in bins]


def split_by_budget(
    prompt_lengths: Sequence[int],
    response_lengths: Sequence[Sequence[int]],
    *,
    token_budget: int,
    n_bins: int | None = None,
) -> list[list[GroupPiece]]:
    """Partitions groups into micro-batches of at most ``token_budget`` row tokens each, balanced by tokens.

    Groups stay whole where they can. A group that does not fit, or whose size keeps the bins from fitting, is cut into
    pieces that repeat the prompt.

    Args:
        prompt_lengths: Prompt tokens a group.
        response_lengths: Per group, the row tokens of each response (one less than the response has).
        token_budget: Most row tokens a micro-batch: its prompts' and its responses'.
        n_bins: Exactly so many micro-batches; the smallest number found when not given.

    Returns:
        The micro-batches, none empty, each a list of pieces in the order of groups.

    Raises:
        ValueError: If a prompt with one response exceeds the budget, or ``n_bins`` is more than there are responses or
            too few for the budget.
    """
    sizes = _Sizes(tuple(prompt_lengths), tuple(tuple(group) for group in response_lengths))
    sizes.check(token_budget)
    if n_bins is not None:
        bins = _fit(sizes, n_bins, token_budget)
        if bins is None:
            raise ValueError(f"{sizes.total} tokens do not fit {n_bins} micro-batches of {token_budget} tokens")
        return bins
    fewest = max(1, -(-sizes.total // token_budget))
    tries = (_fit(sizes, k, token_budget) for k in range(fewest, sizes.count + 1))
    return next(bins for bins in tries if bins is not None)


@dataclass(frozen=True)
class _Sizes:
    """Tokens of prompts and responses."""

    prompts: tuple[int, ...]
    responses: tuple[tuple[int, ...], ...]

    @property
    def total(self) -> int:
        return sum(self.prompts) + sum(map(sum, self.responses))

    @property
    def count(self) -> int:
        return sum(map(len, self.responses))

    def of(self, piece: GroupPiece) -> int:
        return self.prompts[piece.group] + sum(self.responses[piece.group][i] for i in piece.responses)

    def whole(self) -> list[GroupPiece]:
        return [GroupPiece(group, tuple(range(len(rows)))) for group, rows in enumerate(self.responses)]

    def halves(self, piece: GroupPiece) -> list[GroupPiece]:
        if len(piece.responses) == 1:
            return [piece]
        row = self.responses[piece.group]
        halves = balanced_bins([row[i] + 1 for i in piece.responses], n_bins=2)
        return [GroupPiece(piece.group, tuple(piece.responses[i] for i in half)) for half in halves]

    def check(self, token_budget: int) -> None:
        if len(self.prompts) != len(self.responses) or not all(self.responses):
            raise ValueError(f"{len(self.prompts)} prompts need as many groups of at least one response")
        for group, (prompt, rows) in enumerate(zip(self.prompts, self.responses, strict=True)):
            if prompt + max(rows) > token_budget:
                raise ValueError(
                    f"the token budget of {token_budget} is below {prompt + max(rows)}: group {group} has a prompt of "
                    f"{prompt} tokens and a response that takes {max(rows)}"
                )


def _fit(sizes: _Sizes, n_bins: int, token_budget: int) -> list[list[GroupPiece]] | None:
    """Exactly ``n_bins`` micro-batches within the budget, cutting the largest pieces as often as it takes, or None."""
    if not 1 <= n_bins <= sizes.count:
        raise ValueError(f"cannot fill {n_bins} micro-batches with {sizes.count} responses")
    pieces = sizes.whole()
    while True:
        tokens = [sizes.of(piece) for piece in pieces]
        if len(pieces) >= n_bins and max(tokens) <= token_budget:
            bins = [_merged([pieces[i] for i in items]) for items in balanced_bins(tokens, n_bins=n_bins)]
            if all(sum(map(sizes.of, pieces_of)) <= token_budget for pieces_of in bins):
                return bins
        cut = _to_cut(pieces, tokens, n_bins)
        if not cut:
            return None
        pieces = [part for i, piece in enumerate(pieces) for part in (sizes.halves(piece) if i in cut else [piece])]


def _to_cut(pieces: Sequence[GroupPiece], tokens: Sequence[int], n_bins: int) -> set[int]:
    """The largest pieces that can be cut, as many as are missing to ``n_bins``, or else about one for every bin."""
    able = [i for i, piece in enumerate(pieces) if len(piece.responses) > 1]
    wanted = n_bins - len(pieces) if len(pieces) < n_bins else n_bins
    return set(sorted(able, key=lambda i: (-tokens[i], i))[: max(1, wanted)])


def _merged(pieces: Sequence[GroupPiece]) -> list[GroupPiece]:
    """Pieces of one group that met in one bin share their prompt again."""
    responses: dict[int, list[int]] = {}
    for piece in pieces:
        responses.setdefault(piece.group, []).extend(piece.responses)
    return [GroupPiece(group, tuple(sorted(responses[group]))) for group in sorted(responses)]


def _equal_groups(n_prompts: int, n_responses: int) -> Tensor:
    if n_prompts == 0 or n_responses % n_prompts:
        raise ValueError(f"{n_responses} responses are no equal groups of {n_prompts} prompts; pass group_of")
    return torch.arange(n_prompts).repeat_interleave(n_responses // n_prompts)


def _check(prompts: Sequence[Sequence[int]], tokens: Tensor, mask: Tensor, exists: Tensor, group_of: Tensor) -> None:
    if tokens.ndim != 2 or not tokens.shape == mask.shape == exists.shape or group_of.shape != tokens.shape[:1]:
        shapes = f"tokens {tuple(tokens.shape)}, mask {tuple(mask.shape)}, group_of {tuple(group_of.shape)}"
        raise ValueError(f"expected (b, T), (b, T) and (b,), got {shapes}")
    empty = [index for index, prompt in enumerate(prompts) if len(prompt) == 0]
    if empty:
        raise ValueError(f"prompts must have at least one token; empty: {empty}")
    if (exists[:, 1:] > exists[:, :-1]).any():
        raise ValueError("a mask must be True up to the response's length and False after it")
    if (mask & ~exists).any():
        raise ValueError("tokens are to be predicted that do not exist")
    if len(group_of) and ((group_of.diff() < 0).any() or group_of.min() < 0 or group_of.max() >= len(prompts)):
        raise ValueError(f"group_of must be non-decreasing and within the {len(prompts)} prompts")
