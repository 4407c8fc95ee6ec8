"""Log-probs of a whole rollout under a model, without gradient and without padding."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rlhf_lightning.functional.packing import GroupPiece, pack_groups, split_by_budget
from rlhf_lightning.models.packed import packed_logprobs
from rlhf_lightning.types import PackedSequences, Rollout

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@torch.no_grad()
def rollout_logprobs(model: PreTrainedModel, rollout: Rollout, *, token_budget: int, chunk_size: int) -> Tensor:
    """(B, T) log-probs of the responses at the sampling temperature, 0 off the mask.

    Args:
        model: Any packable causal LM.
        rollout: The responses.
        token_budget: Most row tokens of one forward.
        chunk_size: Most rows of logits held at once.
    """
    logprobs = torch.zeros(rollout.mask.shape, dtype=torch.float32, device=rollout.tokens.device)
    for rows, packed in _packs(rollout, token_budget):
        flat = packed_logprobs(model, packed, temperature=rollout.params.temperature, chunk_size=chunk_size)
        logprobs[rows] = packed.to_rows(flat.to(logprobs.dtype))
    return logprobs


def _packs(rollout: Rollout, token_budget: int) -> list[tuple[Tensor, PackedSequences]]:
    lengths = (rollout.lengths - 1).clamp(min=0).view(len(rollout.prompts), -1).tolist()
    prompts = [len(prompt.tokens) for prompt in rollout.prompts]
    return [_pack(rollout, pieces) for pieces in split_by_budget(prompts, lengths, token_budget=token_budget)]


def _pack(rollout: Rollout, pieces: list[GroupPiece]) -> tuple[Tensor, PackedSequences]:
    rows = torch.tensor([piece.group * rollout.group_size + i for piece in pieces for i in piece.responses])
    counts = torch.tensor([len(piece.responses) for piece in pieces])
    packed = pack_groups(
        [rollout.prompts[piece.group].tokens for piece in pieces],
        rollout.tokens[rows],
        rollout.mask[rows],
        group_of=torch.arange(len(pieces)).repeat_interleave(counts),
    )
    return rows, packed
