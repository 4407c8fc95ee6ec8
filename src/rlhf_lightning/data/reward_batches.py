"""From judged groups to packed micro-batches: which places are supervised, and what each counts.

Weights are made once an update over all its groups, so neither micro-batches nor token budget change the gradient.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from rlhf_lightning.errors import DataError
from rlhf_lightning.functional.packing import GroupPiece
from rlhf_lightning.models.reward_packs import atoms_of, pack_responses, split_groups
from rlhf_lightning.reward_types import RenderedGroup, RewardBatch


@dataclass(frozen=True)
class Supervision:
    """What a reward model learns from, and what each part of its loss counts.

    Attributes:
        process: Whether the steps' labels count beside the final one's.
        correctness_weight: Weight of the mean cross-entropy (Eq. 2, first term).
        preference_weight: Weight of the mean preference loss (Eq. 1).
        task_weights: By task, 1 where none is given; they multiply each place's and each pair's loss.
        by_response: Whether labelled responses weigh the same whatever their number of steps; else labelled places do.
    """

    process: bool = False
    correctness_weight: float = 1.0
    preference_weight: float = 1.0
    task_weights: Mapping[str, float] = field(default_factory=dict)
    by_response: bool = False

    def of_task(self, task: str) -> float:
        """The task's weight."""
        return self.task_weights.get(task, 1.0)


@dataclass(frozen=True)
class Denominators:
    """What an update's sums are divided by; those of ranks add up.

    Attributes:
        labels: Labelled places, or responses with a labelled place (``by_response``).
        pairs: Preference pairs.
    """

    labels: int
    pairs: int


@dataclass(frozen=True)
class Place:
    """A token of a response that is scored.

    Attributes:
        token: Which of the response's tokens.
        label: Probability of being right; None where nothing is known.
    """

    token: int
    label: float | None


def places_of(group: RenderedGroup, response: int, *, process: bool) -> tuple[Place, ...]:
    """The places of one response: with ``process`` its steps' ends, and always its final token.

    The final token's label is the response's ``correct``, or with ``process``, where that is unknown, its last step's.
    A step that ends at the final token itself is no place of its own.
    """
    judged, last = group.group.responses[response], len(group.responses[response]) - 1
    if not process or not judged.steps:
        return (Place(last, judged.correct),)
    ends = zip(group.step_ends[response], judged.steps, strict=True)
    steps = [Place(token, step.label) for token, step in ends if token != last]
    return (*steps, Place(last, judged.steps[-1].label if judged.correct is None else judged.correct))


def denominators_of(groups: Sequence[RenderedGroup], supervision: Supervision) -> Denominators:
    """Counts over all groups of an update on this process."""
    labelled = [
        sum(place.label is not None for place in places_of(group, i, process=supervision.process))
        for group in groups
        for i in range(len(group.responses))
    ]
    labels = sum(map(bool, labelled)) if supervision.by_response else sum(labelled)
    return Denominators(labels, sum(len(group.group.pairs) for group in groups))


def reward_updates(
    updates: Sequence[Sequence[RenderedGroup]],
    supervision: Supervision,
    *,
    token_budget: int,
    denominators: Sequence[Denominators] | None = None,
    shared_by: int = 1,
) -> list[list[RewardBatch]]:
    """Packs the groups of each update into the same number k of micro-batches.

    Both responses of a pair always share a micro-batch. An update of fewer inseparable parts than k repeats one of its
    micro-batches with all weights 0.

    Args:
        updates: U lists of groups.
        supervision: What is learnt.
        token_budget: Most tokens of a micro-batch.
        denominators: Per update; the counts of its groups when not given.
        shared_by: Number of ranks; k is a multiple of it.

    Returns:
        U lists of k micro-batches.

    Raises:
        ConfigError: If a prompt with one response (or with those that pairs connect) exceeds the budget.
        DataError: If there is nothing to learn in an update.
    """
    if denominators is None:
        denominators = [denominators_of(groups, supervision) for groups in updates]
    for groups, counts in zip(updates, denominators, strict=True):
        if not counts.labels and not counts.pairs:
            raise DataError(_nothing_to_learn(groups, supervision))
    atoms = [[atoms_of(group) for group in groups] for groups in updates]
    both = list(zip(updates, atoms, strict=True))
    needed = max(len(split_groups(groups, token_budget=token_budget, atoms=sets)) for groups, sets in both)
    k = -(-needed // shared_by) * shared_by
    rows = [
        split_groups(groups, token_budget=token_budget, atoms=sets, n_bins=min(k, sum(map(len, sets))))
        for groups, sets in both
    ]
    return [
        _filled([_batch(groups, pieces, supervision, counts, update, k) for pieces in bins], k)
        for update, (groups, bins, counts) in enumerate(zip(updates, rows, denominators, strict=True))
    ]


def _batch(
    groups: Sequence[RenderedGroup],
    pieces: Sequence[GroupPiece],
    supervision: Supervision,
    counts: Denominators,
    update: int,
    micro_batches: int,
) -> RewardBatch:
    packed, tokens = pack_responses(groups, pieces)
    members = [(groups[piece.group], i) for piece in pieces for i in piece.responses]
    places = [places_of(group, i, process=supervision.process) for group, i in members]
    weights = [
        _weights(own, supervision, counts.labels, group.group.task)
        for own, (group, _) in zip(places, members, strict=True)
    ]
    pairs = _pairs(groups, pieces)
    return RewardBatch(
        packed=packed,
        places=torch.cat([row[[place.token for place in own]] for row, own in zip(tokens, places, strict=True)]),
        final=torch.tensor([len(own) for own in places]).cumsum(0) - 1,
        labels=torch.tensor([float(place.label or 0.0) for own in places for place in own]),
        label_weights=torch.tensor([weight for own in weights for weight in own]),
        chosen=torch.tensor([pair[0] for pair in pairs], dtype=torch.int64),
        rejected=torch.tensor([pair[1] for pair in pairs], dtype=torch.int64),
        margins=torch.tensor([pair[2] for pair in pairs]),
        pair_weights=torch.tensor(
            [supervision.preference_weight * supervision.of_task(pair[3]) / counts.pairs for pair in pairs]
        ),
        update=update,
        micro_batches=micro_batches,
    )


def _weights(places: Sequence[Place], supervision: Supervision, labels: int, task: str) -> list[float]:
    known = sum(place.label is not None for place in places)
    share = labels * (known if supervision.by_response else 1)
    weight = supervision.correctness_weight * supervision.of_task(task) / max(share, 1)
    return [0.0 if place.label is None else weight for place in places]


def _pairs(groups: Sequence[RenderedGroup], pieces: Sequence[GroupPiece]) -> list[tuple[int, int, float, str]]:
    """Rows of the chosen and the rejected, margin and task of each pair that stands in the micro-batch."""
    found, row = [], 0
    for piece in pieces:
        rows = {response: row + i for i, response in enumerate(piece.responses)}
        judged = groups[piece.group].group
        inside = [pair for pair in judged.pairs if pair.chosen in rows]
        found += [(rows[pair.chosen], rows[pair.rejected], pair.margin, judged.task) for pair in inside]
        row += len(piece.responses)
    return found


def _filled(batches: list[RewardBatch], k: int) -> list[RewardBatch]:
    shortest = min(batches, key=lambda batch: batch.tokens)
    idle = dataclasses.replace(
        shortest,
        label_weights=torch.zeros_like(shortest.label_weights),
        pair_weights=torch.zeros_like(shortest.pair_weights),
    )
    return batches + [idle] * (k - len(batches))


def _nothing_to_learn(groups: Sequence[RenderedGroup], supervision: Supervision) -> str:
    tasks = ", ".join(sorted({group.group.task for group in groups}))
    wanted = "labels of steps or of whole responses" if supervision.process else "labels of whole responses"
    return f"an update of {len(groups)} groups ({tasks}) has neither preference pairs nor {wanted}: nothing to learn"
