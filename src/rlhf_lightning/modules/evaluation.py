"""Greedy accuracy on held-out prompts, and the samples worth reading."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from rlhf_lightning.pipeline import raw_rewards, transform
from rlhf_lightning.protocols import RewardTransform, Sampler, Scorer
from rlhf_lightning.types import Experience, Prompt, Rollout, Scores


def greedy(sampler: Sampler, prompts: Sequence[Prompt]) -> Rollout:
    """One greedy response a prompt."""
    params = replace(sampler.params, temperature=0.0)
    seeds = torch.zeros(len(prompts), dtype=torch.int64)
    return sampler(prompts, samples_per_prompt=1, seeds=seeds, params=params)


def greedy_rewards(
    sampler: Sampler, scorer: Scorer, transforms: Sequence[RewardTransform], prompts: Sequence[Prompt]
) -> Tensor:
    """(P,) rewards of one greedy response a prompt, scored and transformed as the samples are."""
    rollout = greedy(sampler, prompts)
    return transform(transforms, raw_rewards(rollout, scorer(rollout)))[0].values


def accuracy_metrics(rollout: Rollout, scores: Scores) -> dict[str, float]:
    """Mean verifier score, overall and per task, with length and the share cut off."""
    tasks = sorted({prompt.task for prompt in rollout.prompts})
    by_task = {
        f"held_out/accuracy/{task}": _mean_of(scores, [p.task == task for p in rollout.prompts])
        for task in tasks
        if len(tasks) > 1
    }
    return {
        "held_out/accuracy": float(scores.values.mean()),
        **by_task,
        "held_out/length_mean": float(rollout.lengths.float().mean()),
        "held_out/truncated": float((~rollout.finished).float().mean()),
    }


def evaluate(sampler: Sampler, verifier: Scorer, prompts: Sequence[Prompt]) -> dict[str, float]:
    """Greedy decoding, verified: the paper's policy evaluation (§4.1)."""
    rollout = greedy(sampler, prompts)
    return accuracy_metrics(rollout, verifier(rollout))


def samples_of(experience: Experience) -> list[dict[str, Any]]:
    """Each response with its prompt, scores, reward and advantage, as plain values."""
    rollout, scores = experience.rollout, experience.scores
    mean_advantage = (experience.advantages.values.sum(1) / rollout.lengths.clamp(min=1)).tolist()
    parts = {name: part.tolist() for name, part in scores.parts.items()}
    return [
        {
            "task": rollout.prompt_of(b).task,
            "prompt": rollout.prompt_of(b).text,
            "answer": rollout.prompt_of(b).problem.answer,
            "response": text,
            "scores": {name: values[b] for name, values in parts.items()},
            "reward": float(experience.rewards[b]),
            "advantage": mean_advantage[b],
            "length": int(rollout.lengths[b]),
            "finished": bool(rollout.finished[b]),
        }
        for b, text in enumerate(rollout.texts)
    ]


def _mean_of(scores: Scores, chosen: list[bool]) -> float:
    return float(scores.values[torch.tensor(chosen)].mean())
