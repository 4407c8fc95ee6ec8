"""Judged responses laid out in packed rows: every token of a response stands in the row, since any may be scored."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rlhf_lightning.errors import ConfigError
from rlhf_lightning.functional.packing import GroupPiece, pack_groups
from rlhf_lightning.models.rollout_packs import within_budget
from rlhf_lightning.reward_types import RenderedGroup
from rlhf_lightning.types import PackedSequences


def pack_responses(
    groups: Sequence[RenderedGroup], pieces: Sequence[GroupPiece]
) -> tuple[PackedSequences, list[Tensor]]:
    """One packed row of some groups' responses, each prompt once.

    Args:
        groups: The groups.
        pieces: Which of them, and which of their responses, stand in the row.

    Returns:
        The row, and for each of its responses the (t,) places of its tokens in it.
    """
    responses = [groups[piece.group].responses[i] for piece in pieces for i in piece.responses]
    lengths = torch.tensor([len(response) for response in responses])
    longest = int(lengths.max()) + 1  # pack_groups leaves out each last token, from which nothing is predicted
    tokens = torch.tensor([[*response, *[0] * (longest - len(response))] for response in responses])
    counts = torch.tensor([len(piece.responses) for piece in pieces])
    packed = pack_groups(
        [groups[piece.group].prompt for piece in pieces],
        tokens,
        torch.arange(longest) <= lengths[:, None],
        group_of=torch.arange(len(pieces)).repeat_interleave(counts),
    )
    return packed, [places[1:] for places in packed.predict_index.split((lengths + 1).tolist())]


def atoms_of(group: RenderedGroup) -> list[tuple[int, ...]]:
    """Its responses in sets that must share a row: those that pairs connect, directly or through others."""
    parent = list(range(len(group.responses)))

    def root(i: int) -> int:
        while parent[i] != i:
            i = parent[i]
        return i

    for pair in group.group.pairs:
        low, high = sorted((root(pair.chosen), root(pair.rejected)))
        parent[high] = low
    roots = [root(i) for i in range(len(parent))]
    return [tuple(i for i, r in enumerate(roots) if r == first) for first in dict.fromkeys(roots)]


def split_groups(
    groups: Sequence[RenderedGroup],
    *,
    token_budget: int,
    n_bins: int | None = None,
    atoms: Sequence[Sequence[tuple[int, ...]]] | None = None,
) -> list[list[GroupPiece]]:
    """Partitions groups into rows of at most ``token_budget`` tokens, balanced by tokens.

    Args:
        groups: The groups, prompts counted once a row.
        token_budget: Most tokens a row.
        n_bins: Exactly so many rows; the smallest number found when not given.
        atoms: For each group, the sets of responses that must share a row; each response alone when not given.

    Returns:
        The rows, none empty, each a list of pieces in the order of groups.

    Raises:
        ConfigError: If a prompt with one of its sets exceeds the budget, or ``n_bins`` does not fit.
    """
    if atoms is None:
        atoms = [[(i,) for i in range(len(group.responses))] for group in groups]
    sizes = [
        [sum(len(group.responses[i]) for i in atom) for atom in sets] for group, sets in zip(groups, atoms, strict=True)
    ]
    for group, sets, lengths in zip(groups, atoms, sizes, strict=True):
        if len(group.prompt) + max(lengths) > token_budget:
            raise ConfigError(_too_long(group, len(sets[lengths.index(max(lengths))]), max(lengths), token_budget))
    prompts = [len(group.prompt) for group in groups]
    bins = within_budget(prompts, sizes, token_budget=token_budget, n_bins=n_bins)
    return [[_of_responses(piece, atoms[piece.group]) for piece in pieces] for pieces in bins]


def _of_responses(piece: GroupPiece, atoms: Sequence[tuple[int, ...]]) -> GroupPiece:
    return GroupPiece(piece.group, tuple(sorted(i for atom in piece.responses for i in atoms[atom])))


def _too_long(group: RenderedGroup, count: int, tokens: int, token_budget: int) -> str:
    what = "a response" if count == 1 else f"{count} responses that pairs connect"
    return (
        f"token_budget: {token_budget} is below {len(group.prompt) + tokens}: problem {group.group.problem.id} of task "
        f"{group.group.task} has a prompt of {len(group.prompt)} tokens and {what} of {tokens}"
    )
