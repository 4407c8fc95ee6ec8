"""Rollouts drawn while the one before trains: when that may be, how stale they are, what a checkpoint keeps of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from rlhf_lightning.axes import flat, to_device, unflat
from rlhf_lightning.errors import ConfigError
from rlhf_lightning.protocols import PolicyLoss
from rlhf_lightning.ranks import own_share
from rlhf_lightning.samplers.overlap import OverlapSampler
from rlhf_lightning.samplers.wrappers import gathered_rollout, own_part
from rlhf_lightning.types import Prompt, Rollout


def check_overlap(overlap: int, loss: PolicyLoss) -> None:
    """Refuses what is not known to work, and stale samples that nothing corrects for.

    Raises:
        ConfigError: If ``overlap`` is neither 0 nor 1, or the policy loss takes samples for the policy's own.
    """
    if overlap not in (0, 1):
        raise ConfigError(
            f"overlap must be 0 (sample with the newest weights) or 1 (sample while the rollout before trains), "
            f"got {overlap}"
        )
    if overlap and not loss.corrects_sampler:
        raise ConfigError(
            f"overlap: 1 trains on responses that older weights drew, which policy loss {type(loss).__name__} takes "
            "for the policy's own: wrap it, policy_loss: {name: importance, loss: …}, or take overlap: 0"
        )


def check_version(sampled: int, now: int, *, oldest: int) -> None:
    """Refuses responses of weights that are older than was agreed, or that the policy does not have yet.

    Args:
        sampled: Version of the weights that drew them (updates made before).
        now: The policy's.
        oldest: Least version that is accepted.

    Raises:
        RuntimeError: Naming the versions.
    """
    if not oldest <= sampled <= now:
        late = f", and may be at {oldest} at the oldest" if oldest < now else ""
        raise RuntimeError(f"the sampler used weights of version {sampled}, but the policy is at version {now}{late}")


class Ahead:
    """What is drawn ahead of a run's cursor.

    Args:
        sampler: Draws this rank's share.

    Attributes:
        rollout: Index of the rollout that was begun last; -1 for none.
    """

    def __init__(self, sampler: OverlapSampler) -> None:
        self.sampler, self.rollout = sampler, -1
        self._prompts: Sequence[Prompt] = ()

    def begin(self, rollout: int, prompts: Sequence[Prompt], samples: int, seeds: Tensor) -> None:
        """Starts drawing this rank's share of a rollout."""
        self.rollout, self._prompts = rollout, prompts
        mine, own_seeds = own_part(prompts, samples, seeds)
        self.sampler.begin(mine, samples_per_prompt=samples, seeds=own_seeds)

    def state_of(self, rollout: int) -> dict[str, Any] | None:
        """All ranks' shares of a rollout, once they are there; None if it was not begun. All ranks must call it."""
        own = self.sampler.waiting()
        if own is None or self.rollout != rollout:
            return None
        return state_of(gathered_rollout(own, self._prompts))

    def restore(self, state: Mapping[str, Any], rollout: int, prompts: Sequence[Prompt], seeds: Tensor) -> None:
        """Takes this rank's share of what :meth:`state_of` gave, on whatever number of ranks.

        Raises:
            ConfigError: If this run would draw other samples for that rollout.
        """
        self.rollout, self._prompts = rollout, prompts
        whole = restored(state, prompts, seeds)
        _, own_seeds = own_part(prompts, whole.group_size, seeds)
        self.sampler.put(whole.take_groups(own_share(len(prompts))), own_seeds)

    def logged(self) -> dict[str, float]:
        """How quick the last draw in the background was."""
        name = "speed/rollout_ahead_tokens_per_s"
        return {} if self.sampler.speed is None else {name: self.sampler.speed}


def state_of(rollout: Rollout) -> dict[str, Any]:
    """A rollout as tensors and plain values, for a checkpoint; its prompts by their numbers."""
    numbers = [prompt.index for prompt in rollout.prompts]
    return flat(to_device(replace(rollout, prompts=()), torch.device("cpu"))) | {"prompts": numbers}


def restored(state: Mapping[str, Any], prompts: Sequence[Prompt], seeds: Tensor) -> Rollout:
    """The rollout that :func:`state_of` put down.

    Args:
        state: What it gave.
        prompts: This run's for that rollout.
        seeds: And the seeds of their samples.

    Raises:
        ConfigError: If these are others than the rollout was drawn for.
    """
    tokens = state["tokens"]
    if "lengths" in state:  # of a checkpoint from before fields said their axes
        params = {f"params.{name}": value for name, value in state["params"].items()}
        state = {**state, **params, "mask": torch.arange(tokens.shape[1]) < state["lengths"][:, None]}
    if state["prompts"] != [prompt.index for prompt in prompts] or len(tokens) != len(seeds):
        raise ConfigError(
            f"the checkpoint holds a rollout that was drawn ahead, {len(tokens)} responses to {len(state['prompts'])} "
            f"prompts, but this run draws {len(seeds)} to {len(prompts)}, or to others: resume with the data, "
            "prompts_per_rollout and samples_per_prompt that the run was begun with, or with overlap: 0, which drops it"
        )
    return replace(unflat(Rollout, {**state, "prompts": ()}), prompts=tuple(prompts))


class EndsDraws(Callback):
    """When a fit ends, by whatever, nothing is drawn any more.

    Args:
        sampler: What draws.
    """

    def __init__(self, sampler: OverlapSampler) -> None:
        self.sampler = sampler

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """An error, or a request to stop."""
        self.sampler.drop()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """The end."""
        self.sampler.drop()
