"""Whole groups of a scored rollout taken, and put together with those of another."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from rlhf_lightning.types import Rollout, Scores, StepScores

Scored = tuple[Rollout, Scores]


def replace_groups(scored: Scored, places: Sequence[int], fresh: Scored, chosen: Sequence[int]) -> Scored:
    """The groups at ``places`` replaced, in order, by the ``chosen`` ones of another scored rollout.

    Args:
        scored: A rollout of P groups with its scores.
        places: Which of its groups go.
        fresh: Another one, of the same G.
        chosen: As many of its groups.

    Returns:
        P groups, as wide as the longest response.
    """
    count = len(scored[0].prompts)
    order = list(range(count))
    for place, group in zip(places, chosen, strict=True):
        order[place] = count + group
    return _take(_join(scored, fresh), order)


def _join(first: Scored, second: Scored) -> Scored:
    (a, scores_a), (b, scores_b) = first, second
    width = max(a.tokens.shape[1], b.tokens.shape[1])

    def stacked(x: Tensor, y: Tensor) -> Tensor:
        return torch.cat([_wide(x, width), _wide(y, width)])

    rollout = Rollout(
        prompts=a.prompts + b.prompts,
        tokens=stacked(a.tokens, b.tokens),
        mask=stacked(a.mask, b.mask),
        logprobs=stacked(a.logprobs, b.logprobs),
        finished=torch.cat([a.finished, b.finished]),
        texts=a.texts + b.texts,
        params=a.params,
        weights_version=a.weights_version,
    )
    steps = None
    if scores_a.steps is not None and scores_b.steps is not None:
        x, y = scores_a.steps, scores_b.steps
        steps = StepScores(stacked(x.values, y.values), stacked(x.ends, y.ends))
    parts = {name: torch.cat([part, scores_b.parts[name]]) for name, part in scores_a.parts.items()}
    values, failed = torch.cat([scores_a.values, scores_b.values]), torch.cat([scores_a.failed, scores_b.failed])
    return rollout, Scores(values, parts, failed, steps)


def _take(scored: Scored, groups: Sequence[int]) -> Scored:
    rollout, scores = scored
    size = rollout.group_size
    rows = (torch.tensor(groups)[:, None] * size + torch.arange(size)).flatten()
    width = int(rollout.lengths[rows].max())
    kept = Rollout(
        prompts=tuple(rollout.prompts[group] for group in groups),
        tokens=rollout.tokens[rows, :width],
        mask=rollout.mask[rows, :width],
        logprobs=rollout.logprobs[rows, :width],
        finished=rollout.finished[rows],
        texts=tuple(rollout.texts[row] for row in rows.tolist()),
        params=rollout.params,
        weights_version=rollout.weights_version,
    )
    steps = scores.steps
    if steps is not None:
        steps = StepScores(steps.values[rows, :width], steps.ends[rows, :width])
    parts = {name: part[rows] for name, part in scores.parts.items()}
    return kept, Scores(scores.values[rows], parts, scores.failed[rows], steps)


def _wide(x: Tensor, width: int) -> Tensor:
    return pad(x, (0, width - x.shape[1]))
