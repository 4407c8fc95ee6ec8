"""Numbers of a whole rollout's tokens under a model (log-probs, values), without gradient and without padding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rlhf_lightning import ranks
from rlhf_lightning.axes import fitted
from rlhf_lightning.functional.packing import GroupPiece
from rlhf_lightning.models.attention import as_in_training
from rlhf_lightning.models.packed import packed_logprobs
from rlhf_lightning.models.rollout_packs import pack_pieces, split_rollout
from rlhf_lightning.types import PackedSequences, Rollout

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Rows = Sequence[Sequence[GroupPiece]]
"""Packed rows, each of some responses of some groups."""


def rollout_logprobs(
    model: PreTrainedModel, rollout: Rollout, *, token_budget: int, chunk_size: int, rows: Rows | None = None
) -> Tensor:
    """(B, T) log-probs of the responses at the sampling temperature, 0 off the mask.

    Args:
        model: Any packable causal LM.
        rollout: The responses.
        token_budget: Most row tokens of one forward.
        chunk_size: Most rows of logits held at once.
        rows: As for :func:`over_rollout`.

    Raises:
        ConfigError: If a prompt with its response exceeds the budget.
    """

    def logprobs(packed: PackedSequences) -> Tensor:
        return packed_logprobs(model, packed, temperature=rollout.params.temperature, chunk_size=chunk_size)

    return over_rollout(logprobs, rollout, token_budget=token_budget, rows=rows)


def rollout_entropy(model: PreTrainedModel, rollout: Rollout, *, token_budget: int, chunk_size: int) -> Tensor:
    """(B, T) entropies of the distributions that the response tokens were drawn from, in nats, 0 off the mask.

    Arguments and errors as for :func:`rollout_logprobs`; at the sampling temperature, over the whole vocabulary.
    """

    def entropies(packed: PackedSequences) -> Tensor:
        settings = {"temperature": rollout.params.temperature, "chunk_size": chunk_size}
        return packed_logprobs(model, packed, **settings, return_entropy=True)[1]  # type: ignore[call-overload,no-any-return]

    return over_rollout(entropies, rollout, token_budget=token_budget)


@torch.no_grad()
def over_rollout(
    of_row: Callable[[PackedSequences], Tensor], rollout: Rollout, *, token_budget: int, rows: Rows | None = None
) -> Tensor:
    """Lays a rollout out in packed rows and gathers what a function says of each; ranks share the rows.

    Every rank calls the function as often as the others, whose sharded weights come together in it: a rank that has
    fewer rows does the last one too, to no effect.

    Args:
        of_row: Gives (R,) numbers, one a response token of a row.
        rollout: The responses.
        token_budget: Most row tokens of one call.
        rows: Which responses share a row; as few rows as the budget allows when not given. Given are the rows of
            updates, and the function then computes as in training, to the last bit. Responses that stand in none are
            left out.

    Returns:
        (B, T) in float32, 0 off the mask.

    Raises:
        ConfigError: If a prompt with its response exceeds the budget.
    """
    numbers = torch.zeros(rollout.mask.shape, dtype=torch.float32, device=rollout.tokens.device)
    bins = _even_bins(rollout, token_budget) if rows is None else rows
    with nullcontext() if rows is None else as_in_training():
        for number in ranks.in_turn(len(bins)):
            own, packed = pack_pieces(rollout, bins[number])
            numbers[own] = packed.to_rows(of_row(packed).to(numbers.dtype)) * ranks.does(number)
    return ranks.added(numbers)


def with_place_after(rollout: Rollout, rows: Tensor) -> Rollout:
    """A rollout with one more place after the last token of some responses, one column wider.

    What stands in that place is of no account: the last token of a packed response is predicted, never read.

    Args:
        rollout: The responses.
        rows: (B,) True for those that get a place.
    """
    wider = fitted(rollout, T=rollout.tokens.shape[1] + 1)
    mask = wider.mask.clone()
    mask[rows, rollout.lengths[rows]] = True
    return replace(wider, mask=mask)


def _even_bins(rollout: Rollout, token_budget: int) -> list[list[GroupPiece]]:
    """Rows within the budget, as many for each rank where there are responses enough."""
    groups, count = range(len(rollout.prompts)), ranks.world_size()
    bins = split_rollout(rollout, groups, token_budget=token_budget)
    even = min(-(-len(bins) // count) * count, len(rollout.texts))
    return bins if even == len(bins) else split_rollout(rollout, groups, token_budget=token_budget, n_bins=even)
