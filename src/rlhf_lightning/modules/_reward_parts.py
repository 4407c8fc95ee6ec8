"""The parts of the reward model's loss, the samples worth reading, and settings that cannot be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from rlhf_lightning.errors import ConfigError
from rlhf_lightning.functional.reward_loss import centering_loss, correctness_loss, preference_loss
from rlhf_lightning.reward_types import RenderedGroup, ResponseScore, RewardBatch


def loss_parts(scores: Tensor, batch: RewardBatch, *, centering: float = 0.0) -> dict[str, Tensor]:
    """The parts of Eq. 2, weighted: their sum over an update's micro-batches is the update's loss.

    Args:
        scores: (K,) scores at the batch's places, with gradient.
        batch: The micro-batch.
        centering: Coefficient of the pairs' centring.

    Returns:
        Scalars by name: ``correctness`` always, ``preference`` where there are pairs, and ``centering`` where its
        coefficient is not 0 either.
    """
    known = batch.label_weights > 0
    cross_entropy = correctness_loss(scores[None], batch.labels[None], known[None])[0]
    parts = {"correctness": (cross_entropy * batch.label_weights).sum()}
    if len(batch.chosen):
        final = scores[batch.final]
        chosen, rejected = final[batch.chosen], final[batch.rejected]
        parts["preference"] = (preference_loss(chosen, rejected, batch.margins) * batch.pair_weights).sum()
        if centering:
            parts["centering"] = centering * (centering_loss(chosen, rejected) * batch.pair_weights).sum()
    return parts


def samples_of(groups: Sequence[RenderedGroup], scores: Sequence[Sequence[ResponseScore]]) -> list[dict[str, Any]]:
    """Each response with its question, labels and scores, as plain values."""
    return [
        {
            "task": rendered.group.task,
            "prompt": rendered.group.problem.question,
            "response": response.text,
            "correct": response.correct,
            "score": score.final,
            "step_labels": [step.label for step in response.steps],
            "step_scores": list(score.steps),
        }
        for rendered, own in zip(groups, scores, strict=False)
        for response, score in zip(rendered.group.responses, own, strict=True)
    ]


def check_sizes(**sizes: int) -> None:
    """Refuses sizes below 1.

    Raises:
        ConfigError: Naming the first.
    """
    for name, value in sizes.items():
        if value < 1:
            raise ConfigError(f"{name} must be at least 1, got {value}")


def check_weights(correctness: float, preference: float, centering: float, tasks: Mapping[str, float]) -> None:
    """Refuses negative weights, and weights with which nothing would be learnt.

    Raises:
        ConfigError: Naming the weight.
    """
    given = {"correctness_weight": correctness, "preference_weight": preference, "centering": centering}
    for name, value in {**given, **{f"task_weights.{task}": weight for task, weight in tasks.items()}}.items():
        if not value >= 0:
            raise ConfigError(f"{name} must be 0 or more, got {value}")
    if correctness == preference == 0:
        raise ConfigError("correctness_weight and preference_weight are both 0: nothing would be learnt")
