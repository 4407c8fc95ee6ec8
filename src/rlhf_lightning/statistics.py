"""The numbers logged of a rollout: means over tokens, sequences or groups, named ``subject/quantity``."""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf_lightning.algorithms.metrics import quantiles
from rlhf_lightning.functional import (
    effective_sample_share,
    equal_groups,
    importance_log_weights,
    kl_k1,
    kl_k3,
    masked_mean,
    masked_var,
)
from rlhf_lightning.types import Experience

_LENGTH_PLACES = {"q10": 0.1, "q50": 0.5, "q90": 0.9}
_RATIO_PLACES = {"min": 0.0, "q01": 0.01, "q50": 0.5, "q99": 0.99, "max": 1.0}


def of_rewards(name: str, values: Tensor) -> dict[str, float]:
    """Mean and population standard deviation of (B,) rewards; the latter is 0 where all are the same."""
    all_of_them = torch.ones_like(values, dtype=torch.bool)
    return {f"{name}_mean": float(values.mean()), f"{name}_std": float(masked_var(values, all_of_them).sqrt())}


def of_experience(experience: Experience) -> dict[str, float]:
    """Scores, lengths, advantages, dead groups and the KL to the reference."""
    return {
        **of_scores(experience),
        **of_tasks(experience),
        **of_lengths(experience),
        **of_advantages(experience),
        **of_kl(experience),
        **of_sampler(experience),
        **of_values(experience),
    }


def of_scores(experience: Experience) -> dict[str, float]:
    """Mean of each scorer; share of failed verifications; share of groups whose rewards are all the same."""
    scores, size = experience.scores, experience.rollout.group_size
    return {
        **{f"score/{name}": float(part.mean()) for name, part in scores.parts.items()},
        "score/failed": float(scores.failed.float().mean()),
        "score/nonfinite": 0.0 if scores.nonfinite is None else float(scores.nonfinite.float().mean()),
        "reward/dead_groups": float(equal_groups(scores.values, group_size=size).float().mean()),
    }


def of_tasks(experience: Experience) -> dict[str, float]:
    """Mean raw reward of each task, where there are several."""
    owners = [prompt.task for prompt in experience.rollout.prompts]
    groups = experience.scores.values.view(len(owners), -1)
    tasks = sorted(set(owners)) if len(set(owners)) > 1 else []
    return {f"reward/raw_mean/{task}": float(groups[[owner == task for owner in owners]].mean()) for task in tasks}


def of_lengths(experience: Experience) -> dict[str, float]:
    """Drawn tokens of a response: mean, quantiles and maximum; and the share cut off before they ended."""
    lengths = experience.rollout.drawn.float()
    return {
        "response/length_mean": float(lengths.mean()),
        **{f"response/length_{name}": value for name, value in quantiles(lengths, _LENGTH_PLACES).items()},
        "response/length_max": float(lengths.max()),
        "response/truncated": float((~experience.rollout.finished).float().mean()),
        "response/tokens": float(lengths.sum()),
    }


def of_advantages(experience: Experience) -> dict[str, float]:
    """Mean, absolute mean, population standard deviation and extremes over response tokens."""
    values, mask = experience.advantages.values, experience.rollout.mask
    return {
        "advantage/mean": float(masked_mean(values, mask)),
        "advantage/abs_mean": float(masked_mean(values.abs(), mask)),
        "advantage/std": float(masked_var(values, mask).sqrt()),
        "advantage/min": float(values[mask].min()),
        "advantage/max": float(values[mask].max()),
    }


def of_values(experience: Experience) -> dict[str, float]:
    """How well the critic foresaw its targets: ``1 − var(R − V) / var(R)`` over tokens, 0 where the targets are equal.

    1 is perfect, 0 no better than a constant, below 0 worse than one. The targets hold V itself when lambda is below 1.
    """
    values, returns, mask = experience.values, experience.advantages.returns, experience.rollout.mask
    if values is None or returns is None:
        return {}
    spread, left = masked_var(returns, mask), masked_var(returns - values, mask)
    return {
        "value/mean": float(masked_mean(values, mask)),
        "value/return_mean": float(masked_mean(returns, mask)),
        "value/explained_variance": float(1 - left / spread) if spread > 0 else 0.0,
    }


def of_kl(experience: Experience) -> dict[str, float]:
    """Policy's log-prob a token, and the KL to the reference in nats, per token and per sequence (k1 and k3)."""
    old, ref, mask = experience.old_logprobs, experience.ref_logprobs, experience.rollout.mask
    measured = {"policy/logprob_mean": float(masked_mean(old, mask))}
    if ref is not None:
        k1, k3 = kl_k1(old, ref) * mask, kl_k3(old, ref) * mask
        measured |= {
            "kl/ref_k1_per_token": float(masked_mean(k1, mask)),
            "kl/ref_k3_per_token": float(masked_mean(k3, mask)),
            "kl/ref_k1_per_sequence": float(k1.sum(1).mean()),
        }
    return measured


def of_sampler(experience: Experience) -> dict[str, float]:
    """Where the trainer's log-probs differ from the sampler's: KL, quantiles of the ratios, effective sample shares.

    The KL is KL(sampler ‖ trainer), since the sampler drew the tokens. With a cut support it is not 0 even when both
    have the same weights: the sampler's distribution is another one.
    """
    old, rollout = experience.old_logprobs, experience.rollout
    if torch.equal(old, rollout.logprobs):
        return {}
    drawn = rollout.logprobs.to(old)
    logs = {level: importance_log_weights(old, drawn, rollout.mask, level=level) for level in ("token", "sequence")}
    found = {"token": logs["token"][rollout.mask], "sequence": logs["sequence"][:, 0]}
    return {
        "kl/sampler_k1_per_token": float(masked_mean(kl_k1(drawn, old), rollout.mask)),
        "kl/sampler_k3_per_token": float(masked_mean(kl_k3(drawn, old), rollout.mask)),
        **{name: value for level, x in found.items() for name, value in _of_log_ratios(level, x).items()},
    }


def _of_log_ratios(level: str, logs: Tensor) -> dict[str, float]:
    """The share does not depend on the ratios' scale, so it is taken where nothing overflows."""
    ratios = {f"importance/{level}_ratio_{name}": value for name, value in quantiles(logs.exp(), _RATIO_PLACES).items()}
    share = effective_sample_share((logs - logs.max()).exp())
    return {**ratios, f"importance/{level}_effective_share": float(share)}
