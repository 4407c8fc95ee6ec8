import pytest
import torch

from rlhf_lightning.types import Problem, Prompt, Rollout, SamplingParams


@pytest.fixture
def rollout_of():
    """Makes a rollout of one response a prompt (or of ``group`` each) with the given texts."""

    def make(texts, task="obedient", group=1, metadata=None):
        problem = Problem("p1", "q", "", metadata or {})
        prompts = tuple(Prompt(problem, task, "q", (1,), i) for i in range(len(texts) // group))
        shape = (len(texts), 1)
        return Rollout(
            prompts=prompts,
            tokens=torch.ones(shape, dtype=torch.long),
            mask=torch.ones(shape, dtype=torch.bool),
            logprobs=torch.zeros(shape),
            finished=torch.ones(len(texts), dtype=torch.bool),
            texts=tuple(texts),
            params=SamplingParams(),
        )

    return make
