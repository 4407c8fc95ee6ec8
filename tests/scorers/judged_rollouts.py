"""Rollouts for scorers that read texts alone."""

import torch

from rlhf_lightning.types import Problem, Prompt, Rollout, SamplingParams


def rollout(texts, finished=None, group=1, metadata=None):
    """Responses to 0+0=, 1+1=, …; its tokens are none of the reward model's, which must not look at them."""
    prompts = tuple(
        Prompt(Problem(f"p{i}", f"{i}+{i}=", "", metadata or {}), "sum", "<other template>", (9, 9), i)
        for i in range(len(texts) // group)
    )
    shape = (len(texts), 3)
    return Rollout(
        prompts=prompts,
        tokens=torch.full(shape, 7),
        mask=torch.ones(shape, dtype=torch.bool),
        logprobs=torch.zeros(shape),
        finished=torch.tensor([True] * len(texts) if finished is None else finished),
        texts=tuple(texts),
        params=SamplingParams(),
    )
