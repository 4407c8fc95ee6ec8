"""Batch arithmetic: what the user gives, and all that follows from it; and the types in which models train."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from rlhf_lightning.errors import ConfigError
from rlhf_lightning.holdings import HeldModel, Updates
from rlhf_lightning.models.prepare import SIXTEEN_BITS
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

    def updates(self, logits_chunk: int, checkpointing: bool, float32_logits: bool) -> Updates:
        """How training is described in a plan; arguments as of :class:`Updates`."""
        prompts = -(-self.prompts_per_rollout // self.updates_per_rollout)
        sizes = (self.updates_per_rollout, prompts, self.samples_per_prompt, self.token_budget, self.epochs_per_rollout)
        return Updates(*sizes, logits_chunk, checkpointing, float32_logits)

    def __str__(self) -> str:
        low, rest = divmod(self.prompts_per_rollout, self.updates_per_rollout)
        prompts = f"{low}–{low + 1}" if rest else str(low)
        return (
            f"{self.prompts_per_rollout} prompts × {self.samples_per_prompt} samples = {self.samples_per_rollout} "
            f"responses a rollout; {self.steps_per_rollout} updates of {prompts} prompts × {self.samples_per_prompt}; "
            f"micro-batches of at most {self.token_budget} tokens"
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
