"""From a rollout's experience to packed micro-batches: whole groups to updates, each update within the token budget.

Weights of tokens are made once an update over all its sequences (and ranks), so neither the micro-batches nor the
token budget changes the gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from rlhf_lightning.axes import rows_of, take
from rlhf_lightning.border import checked_tensor
from rlhf_lightning.errors import ConfigError, PartError
from rlhf_lightning.functional.aggregate import aggregation_weights
from rlhf_lightning.functional.packing import GroupPiece
from rlhf_lightning.models.rollout_packs import pack_pieces, split_rollout
from rlhf_lightning.registry import check_choice
from rlhf_lightning.types import Experience, Rollout, UpdateBatch


@dataclass(frozen=True)
class Truncation:
    """What becomes of responses that were cut off at their limit.

    Attributes:
        count: Whether their tokens count in the losses.
        go_on: Whether the critic says what would have followed; else nothing did.
    """

    count: bool = True
    go_on: bool = False

    def counted(self, rollout: Rollout) -> Tensor:
        """(B, T) tokens that count in the losses."""
        counted = rollout.mask if rollout.counted is None else rollout.counted
        return counted if self.count else counted & rollout.finished[:, None]

    def going_on(self, rollout: Rollout) -> Tensor:
        """(B,) responses that are worth something after their last token."""
        return ~rollout.finished & self.go_on


TRUNCATIONS = {"keep": Truncation(), "mask": Truncation(count=False), "bootstrap": Truncation(go_on=True)}
Batch = TypeVar("Batch", bound=Any)
Mark = Callable[[Tensor, Tensor, Tensor, int], Tensor | Mapping[str, Tensor] | None]


def updates_of(
    experience: Experience,
    *,
    updates: int,
    token_budget: int,
    aggregation: str,
    order: Sequence[int] | None = None,
    denominators: Sequence[float] | None = None,
    micro_batches: int | None = None,
    shared_by: int = 1,
    mark: Mark | None = None,
    counted: Tensor | None = None,
) -> list[list[UpdateBatch]]:
    """Splits a rollout's groups over updates and packs each into the same number k of micro-batches.

    Every sequence stands in exactly one micro-batch, those with zero advantage too: they count in the denominators. An
    update of fewer responses than k repeats one of its micro-batches with all weights 0 (whose tokens then count twice
    in the means of diagnostics).

    Args:
        experience: The rollout with its advantages.
        updates: U; the first P mod U updates get one group more than the others.
        token_budget: Most row tokens a micro-batch (prompts once, responses without their last token).
        aggregation: One of ``functional.AGGREGATION_MODES``.
        order: The P groups in the order they are used; as they come when not given.
        denominators: Per update, what its aggregation divides by; that of ``update_denominators`` when not given.
        micro_batches: k; the smallest number that fits every update when not given.
        shared_by: Number of ranks; a k that is not given is a multiple of it.
        mark: Picks tokens of a whole update, from (n, T) old log-probs, advantages, mask, and the update's number.
        counted: (B, T) tokens that count in the losses; those of the rollout when not given.

    Returns:
        U lists of k micro-batches.

    Raises:
        ConfigError: If there are fewer groups than updates, a sequence exceeds the budget, or k does not fit.
    """
    groups = groups_of_updates(len(experience.rollout.prompts), updates, order)
    if denominators is None:
        denominators = update_denominators(
            experience, updates=updates, aggregation=aggregation, order=order, counted=counted
        )
    cut = {"updates": updates, "token_budget": token_budget, "order": order, "shared_by": shared_by}
    k, packs = rows_of_updates(experience.rollout, micro_batches=micro_batches, **cut)  # type: ignore[arg-type]
    old, advantages = experience.old_logprobs, experience.advantages.values
    mask = Truncation().counted(experience.rollout) if counted is None else counted
    batches = []
    for number, members in enumerate(groups):
        rows = rows_of(members, experience.rollout.group_size)
        weights = _weights(mask[rows], aggregation, denominators[number])
        marks = None if mark is None else mark(old[rows], advantages[rows], mask[rows], number)
        first_row = {group: position * experience.rollout.group_size for position, group in enumerate(members)}
        marks, columns = _marks(marks, experience, mask[rows].shape)
        update = _Update(number, k, first_row, weights, marks, columns)
        batches.append(filled([_batch(experience, pieces, update) for pieces in packs[number]], k))
    return batches


def rows_of_updates(
    rollout: Rollout,
    *,
    updates: int,
    token_budget: int,
    order: Sequence[int] | None = None,
    micro_batches: int | None = None,
    shared_by: int = 1,
) -> tuple[int, list[list[list[GroupPiece]]]]:
    """k, and which responses share a packed row in each update: a function of their lengths alone.

    So what is computed of a rollout before its updates can be computed in the very rows of the updates. In 16 bits that
    matters: in another row the same response has other log-probs, up to tenths of a nat.

    Arguments and errors as for :func:`updates_of`.

    Returns:
        k; and of each update its rows, k or as many as it has responses.
    """
    groups = groups_of_updates(len(rollout.prompts), updates, order)
    if micro_batches is None:
        needed = max(len(split_rollout(rollout, members, token_budget=token_budget)) for members in groups)
        micro_batches = -(-needed // shared_by) * shared_by
    sizes = [min(micro_batches, len(members) * rollout.group_size) for members in groups]
    rows = [
        split_rollout(rollout, members, token_budget=token_budget, n_bins=size)
        for members, size in zip(groups, sizes, strict=True)
    ]
    return micro_batches, rows


def update_denominators(
    experience: Experience,
    *,
    updates: int,
    aggregation: str,
    order: Sequence[int] | None = None,
    counted: Tensor | None = None,
) -> list[float]:
    """What each update's aggregation divides by.

    Tokens that count for ``token-mean``, sequences that have any for the ``seq-*`` modes, and for ``constant`` all
    sequences times the longest allowed response (Dr. GRPO, arXiv 2503.20783), whether their tokens count or not.

    Raises:
        ConfigError: If the mode is unknown, or there are fewer groups than updates.
    """
    check_choice(aggregation, _DENOMINATORS, "aggregation")
    groups = groups_of_updates(len(experience.rollout.prompts), updates, order)
    longest = experience.rollout.params.max_new_tokens
    count = _DENOMINATORS[aggregation]
    mask = Truncation().counted(experience.rollout) if counted is None else counted
    return [count(mask[rows_of(members, experience.rollout.group_size)], longest) for members in groups]


def micro_batches_needed(
    experience: Experience, *, updates: int, token_budget: int, order: Sequence[int] | None = None
) -> int:
    """The smallest k that fits every update.

    Raises:
        ConfigError: If a prompt with its response exceeds the budget, or there are fewer groups than updates.
    """
    return rows_of_updates(experience.rollout, updates=updates, token_budget=token_budget, order=order)[0]


def groups_of_updates(n_groups: int, updates: int, order: Sequence[int] | None = None) -> list[list[int]]:
    """Which groups each update takes, contiguous in ``order``.

    Raises:
        ConfigError: If there are fewer groups than updates, or ``order`` is not a permutation of them.
    """
    if not 1 <= updates <= n_groups:
        raise ConfigError(
            f"updates_per_rollout must be between 1 and the {n_groups} prompts of a rollout, got {updates}"
        )
    order = range(n_groups) if order is None else order
    if sorted(order) != list(range(n_groups)):
        raise ConfigError(f"order must name each of the {n_groups} groups once, got {list(order)}")
    size, more = divmod(n_groups, updates)
    ends = [size * (update + 1) + min(update + 1, more) for update in range(updates)]
    return [list(order[start:end]) for start, end in zip([0, *ends], ends, strict=False)]


def filled(batches: list[Batch], k: int) -> list[Batch]:
    """As many as k, by repeating the one of the fewest tokens with all ``weights`` 0."""
    shortest = min(batches, key=lambda batch: batch.tokens)
    idle = replace(shortest, weights=torch.zeros_like(shortest.weights))
    return batches + [idle] * (k - len(batches))


@dataclass(frozen=True)
class _Update:
    """What is known of a whole update: its number, k, each group's first row, and (n, T) weights, marks, columns."""

    number: int
    micro_batches: int
    first_row: dict[int, int]
    weights: Tensor
    marks: Tensor | None
    columns: Mapping[str, Tensor]


def _batch(experience: Experience, pieces: Sequence[GroupPiece], update: _Update) -> UpdateBatch:
    rows, packed = pack_pieces(experience.rollout, pieces)
    own = torch.tensor([update.first_row[piece.group] + i for piece in pieces for i in piece.responses])
    per_token = {
        "old_logprobs": experience.old_logprobs,
        "ref_logprobs": experience.ref_logprobs,
        "advantages": experience.advantages.values,
        "sampler_logprobs": experience.rollout.logprobs,
        "old_values": experience.values,
        "returns": experience.advantages.returns,
        "columns": experience.columns,
    }
    given: dict[str, Any] = take(per_token, "B T", B=rows)
    of_update: dict[str, Any] = take({"marks": update.marks, "columns": update.columns}, "B T", B=own)
    return UpdateBatch(
        packed=packed,
        weights=update.weights[own],
        temperature=experience.rollout.params.temperature,
        update=update.number,
        micro_batches=update.micro_batches,
        marks=of_update["marks"],
        **{**given, "columns": {**given["columns"], **of_update["columns"]}},
    )


def _marks(
    given: Tensor | Mapping[str, Tensor] | None, experience: Experience, shape: Sequence[int]
) -> tuple[Tensor | None, Mapping[str, Tensor]]:
    """What a loss picked out of an update: marks, or columns by name."""
    if not isinstance(given, Mapping):
        return None if given is None else checked_tensor("policy loss", "marks", given, shape), {}
    if taken := sorted(given.keys() & experience.columns.keys()):
        raise PartError(f"policy loss: there is a column {taken[0]!r} already, from sampler, scorers or advantage")
    return None, {name: checked_tensor("policy loss", f"column {name!r}", own, shape) for name, own in given.items()}


def _weights(mask: Tensor, aggregation: str, denominator: float) -> Tensor:
    return aggregation_weights(mask, mode=aggregation, denominator=max(denominator, 1.0))


def _tokens(mask: Tensor, longest: int) -> float:
    return float(mask.sum())


def _sequences(mask: Tensor, longest: int) -> float:
    return float(mask.any(dim=1).sum())


def _longest_sequences(mask: Tensor, longest: int) -> float:
    return float(len(mask) * longest)


_DENOMINATORS: dict[str, Callable[[Tensor, int], float]] = {
    "token-mean": _tokens,
    "seq-mean-token-mean": _sequences,
    "seq-mean-token-sum": _sequences,
    "constant": _longest_sequences,
}
