"""The seed of each sample: a function of run, rollout, prompt and sample, so no random state is ever saved."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rlhf_lightning.samplers._random import mix
from rlhf_lightning.types import Prompt


def sample_seeds(run_seed: int, rollout: int, prompts: Sequence[Prompt], samples_per_prompt: int) -> Tensor:
    """(P·G,) int64 seeds, groups contiguous.

    Args:
        run_seed: The run's seed.
        rollout: Index of the rollout.
        prompts: P prompts; each counts by its index in the data set, not by its place in the batch.
        samples_per_prompt: G.
    """
    return torch.tensor(
        [mix(run_seed, rollout, prompt.index, sample) for prompt in prompts for sample in range(samples_per_prompt)],
        dtype=torch.int64,
    )
