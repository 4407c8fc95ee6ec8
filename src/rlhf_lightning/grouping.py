"""Whole groups of a rollout taken out of it, rollouts put one after another, and their scores with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from rlhf_lightning.types import Rollout, Scores, StepScores


def take_groups(rollout: Rollout, groups: Sequence[int]) -> Rollout:
    """The groups of these numbers, in this order, as wide as their longest response."""
    rows = rows_of(groups, rollout.group_size)
    width = int(rollout.lengths[rows].max())
    return replace(
        rollout,
        prompts=tuple(rollout.prompts[group] for group in groups),
        tokens=rollout.tokens[rows, :width],
        mask=rollout.mask[rows, :width],
        logprobs=rollout.logprobs[rows, :width],
        finished=rollout.finished[rows],
        texts=tuple(rollout.texts[row] for row in rows.tolist()),
    )


def join_rollouts(parts: Sequence[Rollout]) -> Rollout:
    """Rollouts of the same group size and weights one after another, as wide as the widest."""
    width = max(part.tokens.shape[1] for part in parts)
    return replace(
        parts[0],
        prompts=tuple(prompt for part in parts for prompt in part.prompts),
        tokens=_stacked([part.tokens for part in parts], width),
        mask=_stacked([part.mask for part in parts], width),
        logprobs=_stacked([part.logprobs for part in parts], width),
        finished=torch.cat([part.finished for part in parts]),
        texts=tuple(text for part in parts for text in part.texts),
    )


def take_scores(scores: Scores, groups: Sequence[int], *, group_size: int, width: int) -> Scores:
    """The scores of these groups, their step scores cut to ``width`` tokens."""
    rows = rows_of(groups, group_size)
    steps = scores.steps
    if steps is not None:
        steps = StepScores(steps.values[rows, :width], steps.ends[rows, :width])
    parts = {name: part[rows] for name, part in scores.parts.items()}
    nonfinite = None if scores.nonfinite is None else scores.nonfinite[rows]
    return Scores(scores.values[rows], parts, scores.failed[rows], steps, nonfinite, scores.reason)


def join_scores(parts: Sequence[Scores], *, width: int) -> Scores:
    """Scores one after another, step scores ``width`` tokens wide."""
    steps = [part.steps for part in parts if part.steps is not None]
    joined = None
    if len(steps) == len(parts):
        joined = StepScores(_stacked([s.values for s in steps], width), _stacked([s.ends for s in steps], width))
    marks = [torch.zeros_like(part.failed) if part.nonfinite is None else part.nonfinite for part in parts]
    return Scores(
        torch.cat([part.values for part in parts]),
        {name: torch.cat([part.parts[name] for part in parts]) for name in parts[0].parts},
        torch.cat([part.failed for part in parts]),
        joined,
        torch.cat(marks),
        next((part.reason for part in parts if part.reason), ""),
    )


def rows_of(groups: Sequence[int], group_size: int) -> Tensor:
    """Row numbers of groups' sequences."""
    return (torch.tensor(groups)[:, None] * group_size + torch.arange(group_size)).flatten()


def _stacked(parts: Sequence[Tensor], width: int) -> Tensor:
    return torch.cat([pad(part, (0, width - part.shape[1])) for part in parts])
