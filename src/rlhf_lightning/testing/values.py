"""Small seeded inputs that the checks hand to plug-ins."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from rlhf_lightning.functional import last_true
from rlhf_lightning.types import (
    PackedSequences,
    Problem,
    Prompt,
    Rewards,
    Rollout,
    SamplingParams,
    Scores,
    StepScores,
    TokenRewards,
    UpdateBatch,
)

GROUPS, TOKENS = 3, 5


def ragged_mask(sequences: int, tokens: int = TOKENS) -> Tensor:
    """(B, T) mask of lengths 1, 2, …, T, again and again."""
    lengths = torch.arange(sequences) % tokens + 1
    return torch.arange(tokens) < lengths[:, None]


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal draws of a seed."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class AnyColumn(dict[str, Tensor]):
    """Columns of a check: (b, T) positive numbers under every name that is asked for, as if another part had made it.

    Args:
        mask: (b, T) True where a token was drawn; 0 off it.
    """

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self._mask = mask

    def __missing__(self, name: str) -> Tensor:
        return normal(*self._mask.shape, seed=14).abs() * self._mask


def token_rewards(group_size: int, *, equal: bool = False) -> TokenRewards:
    """A reward on the last token of each sequence (all 1 when ``equal``), a small one elsewhere, and all else there is.

    That is critic values, a baseline a prompt, and scores of steps that end at every other token and at the last.
    """
    count = GROUPS * group_size
    mask = ragged_mask(count)
    rewards = torch.zeros(count, TOKENS) if equal else 0.1 * normal(count, TOKENS, seed=1) * mask
    rewards[torch.arange(count), mask.sum(1) - 1] += 1.0 if equal else normal(count, seed=2)
    ends = mask & ((torch.arange(TOKENS) % 2 == 0) | last_true(mask))
    steps = ends.float() if equal else normal(count, TOKENS, seed=9) * ends
    return TokenRewards(
        rewards,
        mask,
        group_size,
        baseline=normal(count, TOKENS, seed=3) * mask,
        prompt_baseline=normal(GROUPS, seed=10),
        steps=StepScores(steps, ends),
        columns=AnyColumn(mask),
    )


def changed_rewards(values: Tensor, group_size: int, changes: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
    """(B,) or (B, T) rewards after each of the :data:`CHANGES` named, by seeded numbers; other names change all."""
    groups = len(values) // group_size
    for change in sorted(changes):
        numbers = normal(1 if change.startswith("rollout") else groups, seed=12).expand(groups)
        each = numbers.repeat_interleave(group_size).view(-1, *[1] * (values.ndim - 1))
        by = {"shift": values + each, "scale": values * (0.5 + each.abs())}
        yield change, by.get(change.removeprefix("rollout "), normal(*values.shape, seed=13))


def rewards(group_size: int, *, equal: bool = False) -> Rewards:
    """Response-level rewards; every fourth response was cut off."""
    count = GROUPS * group_size
    values = torch.ones(count) if equal else normal(count, seed=4)
    return Rewards(values, group_size, ragged_mask(count).sum(1), torch.arange(count) % 4 != 0)


def update_batch(sequences: int = 4) -> UpdateBatch:
    """One micro-batch with advantages of both signs."""
    mask = ragged_mask(sequences)
    old = -normal(sequences, TOKENS, seed=5).abs() * mask
    sign = torch.tensor([1.0, -1.0]).repeat(sequences)[:sequences, None]
    advantages = (0.1 + normal(sequences, 1, seed=6).abs()) * sign * mask
    weights = mask / mask.sum()
    return UpdateBatch(
        packed_of(mask),
        old,
        old.clone(),
        advantages,
        weights,
        temperature=1.0,
        update=0,
        micro_batches=1,
        sampler_logprobs=old + 0.1 * normal(sequences, TOKENS, seed=11) * mask,
        columns=AnyColumn(mask),
    )


def packed_of(mask: Tensor) -> PackedSequences:
    """One prompt of two tokens a sequence, then its response."""
    lengths = mask.sum(1)
    size = int((lengths + 1).sum())
    total = int(lengths.sum())
    return PackedSequences(
        input_ids=torch.ones(size, dtype=torch.long),
        position_ids=torch.cat([torch.arange(n + 1) for n in lengths.tolist()]),
        prompt_lengths=torch.full((len(mask),), 2),
        response_lengths=lengths - 1,
        group_of=torch.arange(len(mask)),
        predict_index=torch.arange(total),
        targets=torch.ones(total, dtype=torch.long),
        mask=mask,
    )


def prompt(text: str = "1+1", index: int = 0) -> Prompt:
    """A prompt whose tokens are its characters' codes."""
    return Prompt(Problem(f"check-{index}", text, "2"), "check", text, tuple(ord(c) for c in text), index)


def rollout(group_size: int = 2) -> Rollout:
    """A finished rollout of digits."""
    count = GROUPS * group_size
    mask = ragged_mask(count)
    texts = tuple("2" * int(n) for n in mask.sum(1))
    return Rollout(
        prompts=tuple(prompt(index=i) for i in range(GROUPS)),
        tokens=mask.long() * 50,
        mask=mask,
        logprobs=-normal(count, TOKENS, seed=7).abs() * mask,
        finished=torch.arange(count) % 4 != 0,
        texts=texts,
        params=SamplingParams(max_new_tokens=TOKENS),
    )


def scores(of: Rollout) -> Scores:
    """Random scores of a rollout."""
    values = normal(len(of.texts), seed=8)
    return Scores(values, {"check": values}, torch.zeros(len(of.texts), dtype=torch.bool))
