"""Greedy accuracy on held-out prompts, and the samples worth reading."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from rlhf_lightning.functional import best_of_n
from rlhf_lightning.pipeline import raw_rewards, transform
from rlhf_lightning.protocols import RewardTransform, Sampler, Scorer
from rlhf_lightning.scorers import MixtureScorer, VerifierScorer, combine
from rlhf_lightning.statistics import of_rewards
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
        "held_out/length_mean": float(rollout.drawn.float().mean()),
        "held_out/truncated": float((~rollout.finished).float().mean()),
    }


def evaluate(
    sampler: Sampler, verifier: Scorer, prompts: Sequence[Prompt], proxy: Scorer | None = None
) -> dict[str, float]:
    """Greedy decoding, verified: the paper's policy evaluation (§4.1); and what a proxy says of the same responses."""
    rollout = greedy(sampler, prompts)
    metrics = accuracy_metrics(rollout, verifier(rollout))
    if proxy is None:
        return metrics
    measured = of_rewards("held_out/proxy", proxy(rollout).values.float())
    return {**metrics, "held_out/proxy": measured.pop("held_out/proxy_mean"), **measured}


def proxy_of(scorer: MixtureScorer) -> Scorer | None:
    """The part of a run's score that is not the verifier's, weighted as in the run; None where there is none."""
    weighed = zip(scorer.scorers, scorer.weights, strict=True)
    others = [(part, weight) for part, weight in weighed if weight and not isinstance(part, VerifierScorer)]
    return combine(*zip(*others, strict=True)) if others else None


def sampled_metrics(
    rollout: Rollout, verifier: Scorer, proxy: Scorer | None, *, best_of: Sequence[int]
) -> dict[str, float]:
    """What several samples a prompt are worth, each N over all subsets of the samples (unbiased).

    Args:
        rollout: K samples a prompt.
        verifier: The truth.
        proxy: Chooses one of N; a sample it cannot score is never chosen over one it can.
        best_of: Sizes N, up to K.

    Returns:
        ``held_out/sampled_accuracy``, ``held_out/pass_at_<N>``, and with a proxy ``held_out/best_of_<N>``.
    """
    size = (len(rollout.prompts), rollout.group_size)
    correct = verifier(rollout).values.view(size)
    metrics = {"held_out/sampled_accuracy": float(correct.mean())}
    metrics |= {f"held_out/pass_at_{n}": float(best_of_n(correct, correct, n=n).mean()) for n in best_of}
    if proxy is None:
        return metrics
    said = proxy(rollout)
    chosen_by = said.values.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
    chosen_by = chosen_by.masked_fill(said.failed, -torch.inf).view(size)
    return {**metrics, **{f"held_out/best_of_{n}": float(best_of_n(chosen_by, correct, n=n).mean()) for n in best_of}}


def samples_of(experience: Experience) -> list[dict[str, Any]]:
    """Each response with its prompt, scores, reward and advantage, as plain values."""
    rollout, scores = experience.rollout, experience.scores
    mean_advantage = (experience.advantages.values.sum(1) / rollout.drawn.clamp(min=1)).tolist()
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
