"""Log-probs of a whole rollout under a model, without gradient and without padding."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rlhf_lightning.models.packed import packed_logprobs
from rlhf_lightning.models.rollout_packs import pack_pieces, split_rollout
from rlhf_lightning.types import Rollout

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

    Raises:
        ConfigError: If a prompt with its response exceeds the budget.
    """
    logprobs = torch.zeros(rollout.mask.shape, dtype=torch.float32, device=rollout.tokens.device)
    for pieces in split_rollout(rollout, range(len(rollout.prompts)), token_budget=token_budget):
        rows, packed = pack_pieces(rollout, pieces)
        flat = packed_logprobs(model, packed, temperature=rollout.params.temperature, chunk_size=chunk_size)
        logprobs[rows] = packed.to_rows(flat.to(logprobs.dtype))
    return logprobs
