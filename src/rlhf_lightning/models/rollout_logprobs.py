"""Numbers of a whole rollout's tokens under a model (log-probs, values), without gradient and without padding."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rlhf_lightning.models.packed import packed_logprobs
from rlhf_lightning.models.rollout_packs import pack_pieces, split_rollout
from rlhf_lightning.types import PackedSequences, Rollout

if TYPE_CHECKING:
    from transformers import PreTrainedModel


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

    def logprobs(packed: PackedSequences) -> Tensor:
        return packed_logprobs(model, packed, temperature=rollout.params.temperature, chunk_size=chunk_size)

    return over_rollout(logprobs, rollout, token_budget=token_budget)


def rollout_entropy(model: PreTrainedModel, rollout: Rollout, *, token_budget: int, chunk_size: int) -> Tensor:
    """(B, T) entropies of the distributions that the response tokens were drawn from, in nats, 0 off the mask.

    Arguments and errors as for :func:`rollout_logprobs`; at the sampling temperature, over the whole vocabulary.
    """

    def entropies(packed: PackedSequences) -> Tensor:
        settings = {"temperature": rollout.params.temperature, "chunk_size": chunk_size}
        return packed_logprobs(model, packed, **settings, return_entropy=True)[1]  # type: ignore[call-overload,no-any-return]

    return over_rollout(entropies, rollout, token_budget=token_budget)


@torch.no_grad()
def over_rollout(of_row: Callable[[PackedSequences], Tensor], rollout: Rollout, *, token_budget: int) -> Tensor:
    """Lays a rollout out in packed rows and gathers what a function says of each.

    Args:
        of_row: Gives (R,) numbers, one a response token of a row.
        rollout: The responses.
        token_budget: Most row tokens of one call.

    Returns:
        (B, T) in float32, 0 off the mask.

    Raises:
        ConfigError: If a prompt with its response exceeds the budget.
    """
    numbers = torch.zeros(rollout.mask.shape, dtype=torch.float32, device=rollout.tokens.device)
    for pieces in split_rollout(rollout, range(len(rollout.prompts)), token_budget=token_budget):
        rows, packed = pack_pieces(rollout, pieces)
        numbers[rows] = packed.to_rows(of_row(packed).to(numbers.dtype))
    return numbers
