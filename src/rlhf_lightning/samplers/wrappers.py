"""Samplers around another one: the base of all of them, and the one by which ranks share the work."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rlhf_lightning import ranks
from rlhf_lightning.axes import join, rows_of, to_device
from rlhf_lightning.delegation import delegates
from rlhf_lightning.protocols import Sampler
from rlhf_lightning.types import Prompt, Rollout, SamplingParams

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@delegates(Sampler, to="sampler")
class SamplerWrapper(Sampler):
    """A sampler that changes one thing about another one; everything else is the other one's business.

    Each method, property and attribute of :class:`~rlhf_lightning.protocols.Sampler` goes on to the sampler inside,
    unless a subclass defines it: ``check``, ``hold_weights``, ``decoding``, ``exact``, ``refill``, and those that the
    contract gets later. Assigning goes on too (``on_tokens``). Wrappers go around each other in any order::

        class Growing(SamplerWrapper):  # short responses first: the limit grows with the policy's updates
            def __init__(self, sampler: Sampler, first: int = 64, per_update: int = 4) -> None:
                super().__init__(sampler)
                self.first, self.per_update, self.limit = first, per_update, first

            def sync(self, weights_version: int) -> None:
                super().sync(weights_version)
                self.limit = self.first + self.per_update * weights_version

            def __call__(self, prompts, *, params=None, **how):
                short = min(self.params.max_new_tokens, self.limit)
                params = params or dataclasses.replace(self.params, max_new_tokens=short)
                return super().__call__(prompts, params=params, **how)

    Args:
        sampler: The sampler inside.

    Attributes:
        sampler: The sampler inside.
    """

    def __init__(self, sampler: Sampler) -> None:
        self.sampler = sampler

    def bind(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """Binds the sampler inside."""
        self.sampler.bind(model, tokenizer)

    def sync(self, weights_version: int) -> None:
        """Syncs the sampler inside."""
        self.sampler.sync(weights_version)

    def wrap_drawing(self, wrapper: Callable[[Sampler], Sampler]) -> Sampler:
        """Puts it around itself; where groups are refilled around what is inside: refills look at whole rollouts."""
        if not self.refills:
            return wrapper(self)
        self.sampler = self.sampler.wrap_drawing(wrapper)
        return self

    def __call__(
        self,
        prompts: Sequence[Prompt],
        *,
        samples_per_prompt: int,
        seeds: Tensor,
        params: SamplingParams | None = None,
    ) -> Rollout:
        """What the sampler inside draws."""
        return self.sampler(prompts, samples_per_prompt=samples_per_prompt, seeds=seeds, params=params)


class DataParallelSampler(SamplerWrapper):
    """Each rank draws the responses of its own share of the prompts; all ranks get the whole rollout.

    Responses depend on their seeds, not on who draws them. Ranks wait for each other only when they are done, so their
    responses may be of any length.

    Args:
        sampler: Draws on this rank.
    """

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


def data_parallel(sampler: Sampler) -> Sampler:
    """The sampler, its drawing divided among the ranks where there are several."""
    return sampler.wrap_drawing(DataParallelSampler) if ranks.world_size() > 1 else sampler
