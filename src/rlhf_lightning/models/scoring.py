"""What a reward model says of responses: packed, without gradients, each prompt computed once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rlhf_lightning import ranks
from rlhf_lightning.axes import to_device
from rlhf_lightning.functional.packing import GroupPiece
from rlhf_lightning.models.reward_packs import pack_responses, split_groups
from rlhf_lightning.models.scalar import packed_scalars
from rlhf_lightning.reward_types import RenderedGroup, ResponseScore

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@torch.no_grad()
def score_groups(
    model: PreTrainedModel, groups: Sequence[RenderedGroup], *, process: bool, token_budget: int
) -> list[list[ResponseScore]]:
    """Scores every response of some groups; ranks, which all ask for the same, share the rows.

    A score depends on its own prompt and response alone: neither on padding, nor on what stands beside it (up to the
    rounding of the model's type).

    Args:
        model: As ``models.scalar.scalar_model`` makes it; scored in evaluation mode, and left in the mode it was in.
        groups: Rendered groups; pairs and labels don't matter.
        process: Also score each step's end.
        token_budget: Most tokens of a packed row.

    Returns:
        For each group, in order, the scores of its responses; with ``process`` a response's ``steps`` has one score
        for each of its steps (the final score itself for one that ends at the final token), else it is empty.

    Raises:
        ConfigError: If a prompt with one response exceeds the budget, or the model has no scalar head.
    """
    if not groups:
        return []
    training = model.training
    model.eval()
    try:
        own = _own_scores(model, groups, process=process, token_budget=token_budget)
    finally:
        model.train(training)
    found = {name: score for part in ranks.gathered(own) for name, score in part.items()}
    return [[found[group, i] for i in range(len(row.responses))] for group, row in enumerate(groups)]


def _own_scores(
    model: PreTrainedModel, groups: Sequence[RenderedGroup], *, process: bool, token_budget: int
) -> dict[tuple[int, int], ResponseScore]:
    """This rank's share of the rows; as many forwards as on the others, whose sharded weights come together in them."""
    rows = split_groups(groups, token_budget=token_budget)
    responses = sum(len(group.responses) for group in groups)
    even = min(-(-len(rows) // ranks.world_size()) * ranks.world_size(), responses)
    if even != len(rows):
        rows = split_groups(groups, token_budget=token_budget, n_bins=even)
    return dict(
        scored for number in ranks.in_turn(len(rows)) for scored in _scored(model, groups, rows[number], process)
    )


def _scored(
    model: PreTrainedModel, groups: Sequence[RenderedGroup], pieces: Sequence[GroupPiece], process: bool
) -> Iterator[tuple[tuple[int, int], ResponseScore]]:
    packed, tokens = pack_responses(groups, pieces)
    names = [(piece.group, i) for piece in pieces for i in piece.responses]
    ends = [groups[group].step_ends[i] if process else () for group, i in names]
    once = [own_ends[-1:] == (len(own) - 1,) for own_ends, own in zip(ends, tokens, strict=True)]
    places = [
        own[[*own_ends, *([] if is_last else [len(own) - 1])]]
        for own_ends, is_last, own in zip(ends, once, tokens, strict=True)
    ]
    device: torch.device = model.device  # type: ignore[assignment]
    flat: Tensor = packed_scalars(model, to_device(packed, device), torch.cat(places).to(device)).cpu()
    for name, is_last, own in zip(names, once, flat.split([len(p) for p in places]), strict=True):
        scores = tuple(own.tolist())
        yield name, ResponseScore(scores[-1], scores if is_last else scores[:-1])
