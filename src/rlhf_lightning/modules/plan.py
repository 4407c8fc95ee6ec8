"""Batch arithmetic: what the user gives, and all that follows from it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from rlhf_lightning.errors import ConfigError
from rlhf_lightning.holdings import HeldModel
from rlhf_lightning.models.prepare import SIXTEEN_BITS
from rlhf_lightning.protocols import AdvantageEstimator, RewardTransform, Sampler
from rlhf_lightning.strategies import Sharding


@dataclass(frozen=True)
class BatchPlan:
    """How one rollout is cut into updates (paper, §4.1: rollouts of 1024·M, a gradient step per 128·M samples).

    Attributes:
        prompts_per_rollout: P.
        samples_per_prompt: M.
        updates_per_rollout: Gradient steps a pass over the rollout; whole groups stay together, uneven splits are fine.
        epochs_per_rollout: Passes over each rollout.
        token_budget: Most tokens of one packed micro-batch (prompt once, then its responses).

    Raises:
        ConfigError: If a number is not positive, or there are more updates than prompts.
    """

    prompts_per_rollout: int
    samples_per_prompt: int
    updates_per_rollout: int
    epochs_per_rollout: int
    token_budget: int

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 1:
                raise ConfigError(f"{name} must be at least 1, got {value}")
        if self.updates_per_rollout > self.prompts_per_rollout:
            raise ConfigError(
                f"updates_per_rollout ({self.updates_per_rollout}) is more than prompts_per_rollout "
                f"({self.prompts_per_rollout}): an update needs at least one prompt with all its samples. "
                f"Nearest: updates_per_rollout {self.prompts_per_rollout}"
            )

    @property
    def samples_per_rollout(self) -> int:
        """P·M."""
        return self.prompts_per_rollout * self.samples_per_prompt

    @property
    def steps_per_rollout(self) -> int:
        """Optimizer steps a rollout."""
        return self.updates_per_rollout * self.epochs_per_rollout

    def __str__(self) -> str:
        low, rest = divmod(self.prompts_per_rollout, self.updates_per_rollout)
        prompts = f"{low}–{low + 1}" if rest else str(low)
        return (
            f"{self.prompts_per_rollout} prompts × {self.samples_per_prompt} samples = {self.samples_per_rollout} "
            f"responses a rollout; {self.steps_per_rollout} updates of {prompts} prompts × {self.samples_per_prompt}; "
            f"micro-batches of at most {self.token_budget} tokens"
        )


def check_group_size(samples_per_prompt: int, parts: Iterable[AdvantageEstimator | RewardTransform | Sampler]) -> None:
    """Refuses group statistics over too few samples.

    Raises:
        ConfigError: Naming the part and the smallest ``samples_per_prompt`` it means anything for.
    """
    for part in parts:
        least = part.min_group_size
        if samples_per_prompt < least:
            raise ConfigError(
                f"samples_per_prompt is {samples_per_prompt}, but {type(part).__name__} compares the samples of a "
                f"prompt with each other and needs at least {least}"
            )


def check_estimator(
    advantage: AdvantageEstimator,
    transforms: Iterable[RewardTransform],
    kl_reward: object | None,
    *,
    has_critic: bool,
) -> None:
    """Refuses transforms, penalties and critics that would do nothing, or something else, with this estimator.

    Raises:
        ConfigError: Naming the parts that do not go together.
    """
    _check_critic(advantage, has_critic=has_critic)
    name = type(advantage).__name__
    idle = ["reward_transforms"] * bool(list(transforms)) + ["kl_reward"] * (kl_reward is not None)
    if idle and not advantage.reads_rewards:
        raise ConfigError(f"{name} reads step scores alone, so {' and '.join(idle)} would do nothing: leave it out")
    comparing = [type(step).__name__ for step in transforms if step.compares]
    if comparing and advantage.needs_prompt_baseline:
        raise ConfigError(
            f"{name} compares samples with a greedy response, which {comparing[0]} would shift against other responses "
            "than the samples: leave it out of reward_transforms"
        )


def check_bootstrap(advantage: AdvantageEstimator, *, wanted: bool) -> None:
    """Refuses to ask a critic what follows responses that were cut off, where nobody would listen.

    Raises:
        ConfigError: Naming the estimator.
    """
    if wanted and not advantage.reads_bootstrap:
        raise ConfigError(
            f"truncated: bootstrap gives what a critic says after the last token, which advantage "
            f"{type(advantage).__name__} does not read: take PPOModule with gae, or truncated: keep or mask"
        )


def check_temperature(sampler: Sampler) -> None:
    """Refuses to train on greedy responses: they are all the same, and log-probs divide by the temperature.

    Raises:
        ConfigError: Naming the temperature.
    """
    temperature = sampler.params.temperature
    if not 0 < temperature < math.inf:
        raise ConfigError(
            f"sampler {type(sampler).__name__}: temperature is {temperature}, but a policy trains on samples, which "
            "need one above 0 (1 is the model's own distribution); held-out responses are greedy whatever it is"
        )


def check_token_budget(token_budget: int, longest_prompt: int, max_new_tokens: int) -> None:
    """Refuses micro-batches that one prompt with one response would not fit.

    Raises:
        ConfigError: With the least that is enough.
    """
    least = longest_prompt + max_new_tokens - 1
    if token_budget < least:
        raise ConfigError(
            f"token_budget is {token_budget}, but a prompt of {longest_prompt} tokens with a response of up to "
            f"{max_new_tokens} takes {least} in a row: make it at least {least}"
        )


def said_types(models: Iterable[HeldModel]) -> list[str]:
    """A line for each model that trains in another type than its source says."""
    own = {held.role: getattr(held.source, "dtype", None) for held in models}
    return [
        f"{held.role}: all weights train, so they are {held.dtype}; in its source's {own[held.role]} small steps would "
        "be lost (train_in_16_bits: true keeps it)"
        for held in models
        if held.trained and held.dtype and own[held.role] not in (None, held.dtype)
    ]


def check_types(models: Iterable[HeldModel], sharding: Sharding, *, sixteen_bits: bool) -> None:
    """Refuses 16 bits that nothing would train in, and mixtures of types that the strategy cannot hold.

    Args:
        models: All that the run holds.
        sharding: Where the weights will be.
        sixteen_bits: Whether weights of 16 bits may train.

    Raises:
        ConfigError: Naming the model.
    """
    trained = [(held, str(getattr(held.source, "dtype", None) or "float32")) for held in models if held.trained]
    if sixteen_bits and not any(own in SIXTEEN_BITS and held.lora is None for held, own in trained):
        types = ", ".join(f"{held.role}: {'adapters' if held.lora else own}" for held, own in trained)
        raise ConfigError(
            f"train_in_16_bits: there are no such weights here ({types}): set dtype: bfloat16 of the model's source "
            "too, or leave it out"
        )
    for held, own in trained:
        if held.lora is not None and own in SIXTEEN_BITS and not sharding.mixes_types:
            raise ConfigError(
                f"trainer.strategy: it keeps the weights of a layer in one type, but the adapters of {held.role} are "
                f"float32 and its frozen weights {own}: take fsdp2, or dtype: float32 of its source"
            )
        if held.scalar and held.lora is None and held.dtype in SIXTEEN_BITS and sharding.is_sharded:
            raise ConfigError(
                f"train_in_16_bits: the head of {held.role} is float32 all the same, and sharded weights that train "
                "must be of one type: leave it out"
            )


def check_wide(parameters: Iterable[tuple[str, nn.Parameter]]) -> None:
    """Refuses to train parameters of 16 bits.

    Raises:
        ConfigError: Naming the first.
    """
    narrow = [(name, p) for name, p in parameters if p.requires_grad and p.dtype in SIXTEEN_BITS.values()]
    if narrow:
        name, parameter = narrow[0]
        raise ConfigError(
            f"{len(narrow)} parameters of 16 bits would train, first {name} ({parameter.dtype}): most steps of a small "
            "learning rate are less than their last digit, and would be lost without a word. Let the model's source "
            "load float32, or set train_in_16_bits: true"
        )


def _check_critic(advantage: AdvantageEstimator, *, has_critic: bool) -> None:
    name = type(advantage).__name__
    if advantage.needs_critic and not has_critic:
        raise ConfigError(
            f"advantage {name} needs the values of a critic, and this module has none: take PPOModule, or an advantage "
            "without a critic (group, rloo, reinforce)"
        )
    if has_critic and not advantage.needs_critic:
        raise ConfigError(
            f"PPOModule trains a critic, but advantage {name} gives it no returns to learn from: take gae, or "
            "GRPOModule, which has no critic"
        )
