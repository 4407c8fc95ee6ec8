"""More prompts for samplers that refill a rollout, with the seeds of their samples."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING

from torch import Tensor

from rlhf_lightning.protocols import FurtherPrompts
from rlhf_lightning.samplers.seeds import sample_seeds
from rlhf_lightning.types import Prompt

if TYPE_CHECKING:
    from rlhf_lightning.data.prompts import PromptData


def further_prompts(
    data: PromptData, own: Sequence[Prompt], *, seed: int, rollout: int, samples_per_prompt: int
) -> FurtherPrompts:
    """What a rollout may take beyond its own prompts: a function of the run seed and the rollout alone.

    Args:
        data: The run's prompts.
        own: The rollout's.
        seed: Run seed.
        rollout: Index of the rollout.
        samples_per_prompt: G.
    """
    stream = data.further_prompts(rollout, own)

    def take(count: int) -> tuple[Sequence[Prompt], Tensor]:
        prompts = list(islice(stream, count))
        return prompts, sample_seeds(seed, rollout, prompts, samples_per_prompt)

    return take
