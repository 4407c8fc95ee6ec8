"""Between rollouts and reward models: what is asked, and what the answers are worth."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch

from rlhf_lightning.reward_types import JudgedGroup, JudgedResponse, ResponseScore
from rlhf_lightning.scorers.judge import aggregate_scores
from rlhf_lightning.types import Rollout, Scores

_log = logging.getLogger(__name__)


def groups_of(rollout: Rollout) -> list[JudgedGroup]:
    """The rollout's prompts with their responses, as texts."""
    finished, size = rollout.finished.tolist(), rollout.group_size
    return [
        JudgedGroup(
            prompt.problem,
            prompt.task,
            tuple(JudgedResponse(rollout.texts[b], finished=finished[b]) for b in range(p * size, (p + 1) * size)),
        )
        for p, prompt in enumerate(rollout.prompts)
    ]


def scores_of(name: str, found: Sequence[ResponseScore | None], *, aggregation: str, failure_score: float) -> Scores:
    """The (B,) scores; what could not be scored failed, and gets the failure score."""
    known = [score for score in found if score is not None]
    failed = torch.tensor([score is None for score in found], dtype=torch.bool)
    values = torch.full((len(found),), failure_score, dtype=torch.float32)
    values[~failed] = aggregate_scores(known, aggregation)
    reason = ""
    if failed.any():
        reason = f"scorer {name}: the response is longer than the reward model's context, or empty and cut off"
        count = int(failed.sum())
        _log.warning("%d of %d responses could not be scored and got %g: %s", count, len(found), failure_score, reason)
    return Scores(values, {name: values}, failed, reason=reason)
