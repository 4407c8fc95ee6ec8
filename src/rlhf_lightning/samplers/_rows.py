"""Responses that came from another engine, one by one, as a rollout."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rlhf_lightning.samplers.texts import response_texts
from rlhf_lightning.types import Prompt, Rollout, SamplingParams

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Row:
    """One response.

    Attributes:
        tokens: Its tokens, the one that ended it included; at least one.
        logprobs: As many, of the distribution drawn from.
        finished: Whether it ended by itself.
    """

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    finished: bool


def rollout_of(
    prompts: Sequence[Prompt],
    rows: Sequence[Row],
    params: SamplingParams,
    tokenizer: PreTrainedTokenizerBase,
    ends: Collection[int],
    weights_version: int,
    device: torch.device,
) -> Rollout:
    """The rollout of B rows, groups contiguous; texts are without the tokens ``ends``.

    Raises:
        ValueError: If a row has no tokens, or not a log-prob for each.
    """
    for number, row in enumerate(rows):
        if not row.tokens or len(row.tokens) != len(row.logprobs):
            raise ValueError(f"response {number}: {len(row.logprobs)} log-probs for {len(row.tokens)} tokens")
    lengths = torch.tensor([len(row.tokens) for row in rows], dtype=torch.int64)
    width = int(lengths.max()) if rows else 0
    return Rollout(
        prompts=tuple(prompts),
        tokens=_padded([row.tokens for row in rows], width, torch.int64).to(device),
        mask=(torch.arange(width) < lengths.unsqueeze(1)).to(device),
        logprobs=_padded([row.logprobs for row in rows], width, torch.float32).to(device),
        finished=torch.tensor([row.finished for row in rows], dtype=torch.bool).to(device),
        texts=response_texts(tokenizer, [row.tokens for row in rows], ends, special=params.keep_special_tokens),
        params=params,
        weights_version=weights_version,
    )


def _padded(rows: Sequence[Sequence[float]], width: int, dtype: torch.dtype) -> Tensor:
    table = torch.zeros(len(rows), width, dtype=dtype)
    for line, row in zip(table, rows, strict=True):
        line[: len(row)] = torch.tensor(row, dtype=dtype)
    return table
