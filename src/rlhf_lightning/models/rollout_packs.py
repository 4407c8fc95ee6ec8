"""A rollout laid out in packed rows within a token budget: for updates, and for log-probs of the whole rollout."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rlhf_lightning.errors import ConfigError
from rlhf_lightning.functional.packing import GroupPiece, pack_groups, split_by_budget
from rlhf_lightning.types import PackedSequences, Rollout


def within_budget(
    prompt_lengths: Sequence[int],
    response_lengths: Sequence[Sequence[int]],
    *,
    token_budget: int,
    n_bins: int | None = None,
) -> list[list[GroupPiece]]:
    """:func:`~rlhf_lightning.functional.packing.split_by_budget`, whose refusal is the user's to mend.

    Raises:
        ConfigError: If a prompt with its response exceeds the budget, or ``n_bins`` does not fit.
    """
    try:
        return split_by_budget(prompt_lengths, response_lengths, token_budget=token_budget, n_bins=n_bins)
    except ValueError as error:
        raise ConfigError(f"token_budget: {error}") from error


def split_rollout(
    rollout: Rollout, groups: Sequence[int], *, token_budget: int, n_bins: int | None = None
) -> list[list[GroupPiece]]:
    """Which of the given groups' responses share a row.

    Args:
        rollout: The responses.
        groups: Numbers of the groups to lay out.
        token_budget: Most row tokens (prompts once, responses without their last token).
        n_bins: Exactly so many rows; the smallest number that fits when not given.

    Returns:
        Rows of pieces; a piece's ``group`` is the rollout's.

    Raises:
        ConfigError: As :func:`within_budget`.
    """
    lengths = (rollout.lengths - 1).clamp(min=0).view(len(rollout.prompts), -1).tolist()
    prompts = [len(rollout.prompts[group].tokens) for group in groups]
    bins = within_budget(prompts, [lengths[group] for group in groups], token_budget=token_budget, n_bins=n_bins)
    return [[GroupPiece(groups[piece.group], piece.responses) for piece in pieces] for pieces in bins]


def pack_pieces(rollout: Rollout, pieces: Sequence[GroupPiece]) -> tuple[Tensor, PackedSequences]:
    """One packed row, and (b,) which of the rollout's sequences stand in it."""
    rows = torch.tensor([piece.group * rollout.group_size + i for piece in pieces for i in piece.responses])
    counts = torch.tensor([len(piece.responses) for piece in pieces])
    packed = pack_groups(
        [rollout.prompts[piece.group].tokens for piece in pieces],
        rollout.tokens[rows],
        rollout.mask[rows],
        exists=rollout.exists[rows],
        group_of=torch.arange(len(pieces)).repeat_interleave(counts),
    )
    return rows, packed
