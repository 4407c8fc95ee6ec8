"""How a packed row is laid out for attention: blocks of sequences of like length, padded to the longest one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rlhf_lightning.functional.packing import row_starts
from rlhf_lightning.types import PackedSequences

_SMALL_BLOCK = 1 << 17
"""Scores that another block must save to be worth its calls."""


@dataclass(frozen=True)
class ResponseBlock:
    """Responses of like length, padded to the longest, with the prompts they answer.

    Attributes:
        shape: (n, L), its part of the gathered slots.
        prompts: (n,) which of all gathered prompts each answers, or None when it is each in turn.
        mask: (n or 1, 1, L, S) additive: 0 where a query may see a key, -inf elsewhere; S = longest prompt + L.
    """

    shape: tuple[int, int]
    prompts: Tensor | None
    mask: Tensor


@dataclass(frozen=True)
class AttentionLayout:
    """How the row's tokens are laid out in blocks; made once a forward, used by every layer.

    Attributes:
        gather: (M,) row index of each slot, blocks one after another, padding pointing at token 0.
        scatter: (N,) slot of each token of the row.
        padding: (M, 1) True on padding slots, or None without any.
        prompts: (P', L), its slots first.
        causal: (1, 1, L, L) additive causal mask of the prompts.
        responses: The blocks of responses.
        longest: Tokens of the longest prompt with its response.
        lengths: Of what is laid out.
        wanted: (K,) increasing positions whose final states are asked for, or None when it may be any; a last layer
            may compute these alone.
    """

    gather: Tensor
    scatter: Tensor
    padding: Tensor | None
    prompts: tuple[int, int]
    causal: Tensor
    responses: tuple[ResponseBlock, ...]
    longest: int
    lengths: Lengths
    wanted: Tensor | None = None

    def windowed(self, window: int) -> AttentionLayout:
        """The layout where a query sees the last ``window`` tokens alone, itself among them; made once a row."""
        known: dict[int, AttentionLayout] = self.__dict__.setdefault("_windowed", {})
        if window not in known:
            known[window] = _windowed(self, window)
        return known[window]


@dataclass(frozen=True)
class Lengths:
    """Tokens of the sequences of a packed row, on CPU.

    Attributes:
        prompts: (P',) of each prompt.
        responses: (b,) of each response, as far as it stands in the row.
        group_of: (b,) the prompt of each response, non-decreasing.
    """

    prompts: Tensor
    responses: Tensor
    group_of: Tensor


def attention_layout(packed: PackedSequences, dtype: torch.dtype, wanted: Tensor | None = None) -> AttentionLayout:
    """Lays a packed row out in blocks.

    Args:
        packed: The row.
        dtype: Of the additive masks, the model's.
        wanted: (K,) increasing positions whose final states are asked for; any when not given. The layout passes them
            on where that spares work: if they all stand in responses or at a prompt's end.
    """
    lengths = Lengths(*(x.cpu() for x in (packed.prompt_lengths, packed.response_lengths, packed.group_of)))
    spares = wanted is not None and len(wanted) < len(packed.input_ids) and _outside_prompts(lengths, wanted)
    return lay_out(lengths, packed.input_ids.device, dtype, wanted if spares else None)


def lay_out(
    lengths: Lengths, device: torch.device, dtype: torch.dtype, wanted: Tensor | None = None
) -> AttentionLayout:
    """As :func:`attention_layout`, from lengths alone."""
    prompts, standing, group_of = lengths.prompts, lengths.responses, lengths.group_of
    prompt_start, response_start = row_starts(prompts, standing, group_of)
    slots = [_slots(prompt_start, prompts)]
    blocks = []
    for members in length_blocks(standing.tolist(), int(prompts.max())):
        own, group = standing[members], group_of[members]
        slots.append(_slots(response_start[members], own))
        mask = response_mask(prompts[group], int(prompts.max()), int(own.max()), dtype).to(device)
        in_turn = torch.equal(group, torch.arange(len(prompts)))
        blocks.append(ResponseBlock(_shape(own), None if in_turn else group.to(device), mask))
    gather, valid = (torch.cat(parts) for parts in zip(*slots, strict=True))
    scatter = torch.empty(int(valid.sum()), dtype=torch.int64)
    scatter[gather[valid]] = valid.nonzero().squeeze(1)
    padding = None if bool(valid.all()) else ~valid[:, None].to(device)
    longest = int((prompts[group_of] + standing).max()) if len(standing) else int(prompts.max())
    causal = _causal(int(prompts.max()), dtype)[None, None].to(device)
    gather, scatter = gather.to(device), scatter.to(device)
    shape = _shape(prompts)
    return AttentionLayout(gather, scatter, padding, shape, causal, tuple(blocks), longest, lengths, wanted)


def _windowed(layout: AttentionLayout, window: int) -> AttentionLayout:
    """Hides keys that stand ``window`` tokens or more before their query, beside those hidden already."""
    lengths, longest, device = layout.lengths, layout.prompts[1], layout.causal.device
    time = torch.arange(longest)
    far = (time[:, None] - time >= window).to(device)
    causal = layout.causal.masked_fill(far[None, None], float("-inf"))
    blocks = []
    for members, block in zip(length_blocks(lengths.responses.tolist(), longest), layout.responses, strict=True):
        prompts = lengths.prompts[lengths.group_of[members]][: len(block.mask)]
        own = torch.arange(block.shape[1])
        query = prompts[:, None] + own
        key = torch.cat([time.expand(len(prompts), -1), query], dim=1)
        hidden = (query[:, :, None] - key[:, None] >= window)[:, None].to(device)
        blocks.append(replace(block, mask=block.mask.masked_fill(hidden, float("-inf"))))
    return replace(layout, causal=causal, responses=tuple(blocks))


def length_blocks(lengths: Sequence[int], prompt_length: int) -> list[list[int]]:
    """Groups responses into blocks of like length.

    A block ends where a response is shorter than half of its longest one and the scores saved for the responses left
    are worth another call; so padding stays below half of a large block. Responses of no tokens stand in no block.
    """
    left = sorted((i for i, length in enumerate(lengths) if length > 0), key=lambda i: (-lengths[i], i))
    blocks: list[list[int]] = []
    while left:
        longest = lengths[left[0]]
        end = next((n for n, i in enumerate(left) if 2 * lengths[i] < longest), len(left))
        if (len(left) - end) * longest * (prompt_length + longest) < _SMALL_BLOCK:
            end = len(left)
        blocks.append(sorted(left[:end]))
        left = left[end:]
    return blocks


def response_mask(prompt_lengths: Tensor, longest_prompt: int, length: int, dtype: torch.dtype) -> Tensor:
    """Additive mask of a block of responses: keys are the padded prompt, then the responses themselves.

    Padding stands behind a response, where causality hides it, so only the prompts' lengths tell the masks apart.

    Args:
        prompt_lengths: (n,) tokens of each one's prompt.
        longest_prompt: Tokens that prompts are padded to.
        length: L, tokens that the responses are padded to.
        dtype: Of the mask.

    Returns:
        (n, 1, L, longest_prompt + L), or (1, 1, L, ...) when all prompts are equally long.
    """
    lengths = prompt_lengths[:1] if bool((prompt_lengths == prompt_lengths[0]).all()) else prompt_lengths
    hidden = torch.arange(longest_prompt) >= lengths[:, None]
    prompt = torch.zeros(hidden.shape, dtype=dtype).masked_fill_(hidden, float("-inf"))
    prompt = prompt[:, None, None, :].expand(-1, 1, length, -1)
    return torch.cat([prompt, _causal(length, dtype).expand(len(lengths), 1, -1, -1)], dim=-1)


def _outside_prompts(lengths: Lengths, rows: Tensor) -> bool:
    """Whether the tokens at these positions all stand in responses or at a prompt's end."""
    starts, _ = row_starts(lengths.prompts, lengths.responses, lengths.group_of)
    one = torch.ones_like(starts)
    edges = torch.zeros(int(lengths.prompts.sum() + lengths.responses.sum()), dtype=torch.int64)
    edges.index_add_(0, starts, one).index_add_(0, starts + lengths.prompts - 1, -one)
    return not bool(edges.cumsum(0)[rows.cpu()].any())


def _slots(starts: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Row index and validity of each slot of a block."""
    time = torch.arange(int(lengths.max()))
    valid = time < lengths[:, None]
    return torch.where(valid, starts[:, None] + time, 0).flatten(), valid.flatten()


def _shape(lengths: Tensor) -> tuple[int, int]:
    return len(lengths), int(lengths.max())


def _causal(length: int, dtype: torch.dtype) -> Tensor:
    return torch.full((length, length), float("-inf"), dtype=dtype).triu_(1)
