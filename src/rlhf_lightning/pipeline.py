"""From prompts to experience: the arrows, and no algorithm."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from rlhf_lightning import statistics
from rlhf_lightning.algorithms.kl import KLTerm
from rlhf_lightning.axes import to_device
from rlhf_lightning.border import Border, checked_rollout, checked_scores, metric_value, part_name
from rlhf_lightning.events import Events
from rlhf_lightning.functional import last_true
from rlhf_lightning.protocols import AdvantageEstimator, FurtherPrompts, Metric, RewardTransform, Sampler, Scorer
from rlhf_lightning.types import Experience, Prompt, Rewards, Rollout, Scores, TokenRewards


class Forwards(Protocol):
    """What the trainer's models say of a rollout before its updates, without gradient."""

    @property
    def needed(self) -> bool:
        """Whether anything may have to be computed."""

    def old_logprobs(self, rollout: Rollout) -> Tensor:
        """(B, T) log-probs that updates start from; the sampler's own, ``rollout.logprobs``, where those are exact."""

    def ref_logprobs(self, rollout: Rollout) -> Tensor | None:
        """(B, T) log-probs under the frozen reference; None when no KL term asks for them."""

    def values(self, rollout: Rollout) -> tuple[Tensor, Tensor] | None:
        """A critic's (B, T) values before each token, and (B,) after the last one; None without a critic."""


@dataclass(frozen=True)
class Pipeline:
    """The parts of one rollout, in the order they act.

    Attributes:
        sampler: Draws the responses.
        scorer: Scores them.
        transforms: From score to reward, in this order.
        advantage: From token rewards to advantages.
        kl_reward: KL penalty taken off the token rewards, or None.
        metrics: Further numbers to compute of a rollout.
        events: Told which phase is on.
    """

    sampler: Sampler
    scorer: Scorer
    transforms: Sequence[RewardTransform]
    advantage: AdvantageEstimator
    kl_reward: KLTerm | None
    metrics: Sequence[Metric]
    events: Events

    def draw(self, prompts: Sequence[Prompt], *, samples_per_prompt: int, seeds: Tensor) -> Rollout:
        """The responses."""
        with self.events.phase("rollout"):
            drawn = self.sampler(prompts, samples_per_prompt=samples_per_prompt, seeds=seeds)
        return checked_rollout(self.sampler, drawn, len(prompts), samples_per_prompt)

    def judge(self, rollout: Rollout, forwards: Forwards, further: FurtherPrompts | None = None) -> Experience:
        """What they are worth, and all else that updates need of them. What each part gives is checked on its way."""
        border, shape = Border(), rollout.mask.shape
        scores = self._score(rollout)
        refilled: Mapping[str, float] = {}
        if further is not None and self.sampler.refills:
            with self.events.phase("rollout"):
                asked = (self.sampler, len(rollout.prompts), rollout.group_size)
                rollout, scores, refilled = self.sampler.refill(rollout, scores, further=further, score=self._score)
                rollout, shape = checked_rollout(asked[0], rollout, *asked[1:]), rollout.mask.shape
        with self.events.phase("reference") if forwards.needed else nullcontext():
            old, ref, valued = forwards.old_logprobs(rollout), forwards.ref_logprobs(rollout), forwards.values(rollout)
            if forwards.needed:
                self.events.advance(int(rollout.drawn.sum()))
        values, after = valued or (None, None)
        if old is not rollout.logprobs:
            old = border.tensor("policy", "log-probs", old, shape, rollout.mask)
        if ref is not None:
            ref = border.tensor("reference", "log-probs", ref, shape, rollout.mask)
        if values is not None and after is not None:
            values = border.tensor("critic", "values", values, shape, rollout.mask)
            after = border.tensor("critic", "values after the last token", after, shape[:1])
        rewards, logged = transform(self.transforms, raw_rewards(rollout, scores), border)
        token_rewards = replace(
            place_on_tokens(rewards, rollout, old, ref, self.kl_reward, values),
            columns={**rollout.columns, **to_device(scores.columns, rollout.mask.device)},
            steps=to_device(scores.steps, rollout.mask.device),
            prompt_baseline=self._baseline(rollout, border),
            bootstrap=after,
        )
        given = self.advantage(token_rewards)
        advantages = border.advantages(
            self.advantage, given, rollout.mask, with_critic=values is not None, taken=token_rewards.columns
        )
        experience = Experience(rollout, scores, rewards.values, advantages, old, ref, logged, values)
        found = {"rollout/nonfinite": float(border.nonfinite)}
        return replace(experience, metrics={**logged, **refilled, **found, **self._measure(experience)})

    def _score(self, rollout: Rollout) -> Scores:
        with self.events.phase("score", total=len(rollout.texts)):
            return checked_scores(self.scorer, self.scorer(rollout), rollout)

    def _baseline(self, rollout: Rollout, border: Border) -> Tensor | None:
        """(P,) rewards of one greedy response per prompt, scored and transformed as the samples are."""
        if not self.advantage.needs_prompt_baseline:
            return None
        with self.events.phase("baseline"):
            response = greedy(self.sampler, rollout.prompts)
            given = transform(self.transforms, raw_rewards(response, self.scorer(response)))[0].values
        return border.tensor("prompt baseline", "rewards", given, (len(rollout.prompts),))

    def _measure(self, experience: Experience) -> dict[str, float]:
        rollout, scores = experience.rollout, experience.scores
        own = {metric.name: metric_value(metric, metric(rollout, scores)) for metric in self.metrics}
        return {**statistics.of_experience(experience), **own}


def greedy(sampler: Sampler, prompts: Sequence[Prompt]) -> Rollout:
    """One greedy response per prompt."""
    params = replace(sampler.params, temperature=0.0)
    return sampler(prompts, samples_per_prompt=1, seeds=torch.zeros(len(prompts), dtype=torch.int64), params=params)


def raw_rewards(rollout: Rollout, scores: Scores) -> Rewards:
    """The scores as rewards that no transform has touched."""
    return Rewards(scores.values, rollout.group_size, rollout.drawn, rollout.finished)


def transform(
    transforms: Iterable[RewardTransform], rewards: Rewards, border: Border | None = None
) -> tuple[Rewards, Mapping[str, float]]:
    """Applies the transforms in order; also gives mean and standard deviation of the rewards before and after each."""
    border = border or Border()
    logged = statistics.of_rewards("reward/raw", rewards.values)
    for step in transforms:
        rewards = border.rewards(step, step(rewards), rewards)
        logged |= statistics.of_rewards(f"reward/after_{part_name(step)}", rewards.values)
    return rewards, logged


def place_on_tokens(
    rewards: Rewards, rollout: Rollout, old: Tensor, ref: Tensor | None, kl: KLTerm | None, values: Tensor | None
) -> TokenRewards:
    """The response's reward on the last token drawn; on every drawn token the KL penalty, if any (paper, Eq. 3)."""
    values_B = rewards.values.to(old.device, torch.float32)
    per_token = torch.where(last_true(rollout.mask), values_B[:, None], 0.0)
    if kl is not None and ref is not None:
        per_token = per_token - kl(old, ref) * rollout.mask
    return TokenRewards(per_token, rollout.mask, rollout.group_size, values)
