"""A sampler whose work all ranks share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rlhf_lightning import ranks
from rlhf_lightning.axes import join, rows_of, to_device
from rlhf_lightning.holdings import Decoding
from rlhf_lightning.protocols import Sampler
from rlhf_lightning.types import Prompt, Rollout, SamplingParams

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


class SharedSampler(Sampler):
    """Each rank draws the responses of its own share of the prompts; all ranks get the whole rollout.

    Responses depend on their seeds, not on who draws them. Ranks wait for each other only when they are done, so their
    responses may be of any length.

    Args:
        sampler: Draws on this rank.
    """

    def __init__(self, sampler: Sampler) -> None:
        self.sampler, self.params = sampler, sampler.params

    @property
    def exact(self) -> bool:
        """As the sampler inside."""
        return self.sampler.exact

    @property
    def on_tokens(self) -> Callable[[int], None] | None:  # type: ignore[override]
        """Told by the sampler inside, of this rank's tokens."""
        return self.sampler.on_tokens

    @on_tokens.setter
    def on_tokens(self, told: Callable[[int], None] | None) -> None:
        """Tells the sampler inside."""
        self.sampler.on_tokens = told

    def check(self, tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig) -> None:
        """Checks the sampler inside."""
        self.sampler.check(tokenizer, config)

    def bind(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """Binds the sampler inside."""
        self.sampler.bind(model, tokenizer)

    def decoding(self) -> Decoding | None:
        """As the sampler inside, on each rank."""
        return self.sampler.decoding()

    def sync(self, weights_version: int) -> None:
        """Syncs the sampler inside."""
        self.sampler.sync(weights_version)

    def hold_weights(self) -> None:
        """Asks the sampler inside."""
        self.sampler.hold_weights()

    def release(self) -> None:
        """Releases the sampler inside."""
        self.sampler.release()

    def __call__(
        self,
        prompts: Sequence[Prompt],
        *,
        samples_per_prompt: int,
        seeds: Tensor,
        params: SamplingParams | None = None,
    ) -> Rollout:
        """Draws this rank's share, and gathers the others'."""
        mine, own_seeds = own_part(prompts, samples_per_prompt, seeds)
        own = self.sampler(mine, samples_per_prompt=samples_per_prompt, seeds=own_seeds, params=params)
        return gathered_rollout(own, prompts)


def own_part(prompts: Sequence[Prompt], samples_per_prompt: int, seeds: Tensor) -> tuple[list[Prompt], Tensor]:
    """The prompts of which this rank draws the responses, and their samples' seeds."""
    mine = ranks.own_share(len(prompts))
    return [prompts[i] for i in mine], seeds[rows_of(mine, samples_per_prompt)]


def gathered_rollout(own: Rollout, prompts: Sequence[Prompt]) -> Rollout:
    """The rollout of all prompts, from every rank's share of it; on this rank's device."""
    device = own.tokens.device
    light = replace(to_device(own, torch.device("cpu")), prompts=())
    parts = ranks.gathered(light if ranks.owns(len(prompts)) else None)
    joined = join([part for part in parts if part is not None])
    return to_device(replace(joined, prompts=tuple(prompts)), device)


def shared(sampler: Sampler) -> Sampler:
    """The sampler, its drawing shared where there are several ranks."""
    return sampler.wrap_drawing(SharedSampler) if ranks.world_size() > 1 else sampler
