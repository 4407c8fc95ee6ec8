"""The numbers logged of a rollout, by hand."""

import math

import pytest
import torch

from rlhf_lightning import statistics
from rlhf_lightning.algorithms.metrics import Quantiles, quantiles
from rlhf_lightning.types import Advantages, Experience, Problem, Prompt, Rollout, SamplingParams, Scores

LOG2 = math.log(2)
MASK = torch.tensor([[True, True], [True, False], [True, True], [True, False]])


def experience(*, tasks=("a", "b"), old=None, advantages=None, lengths=None) -> Experience:
    """Two prompts, two samples each; scores 1, 0, 0.5, 0.5."""
    mask = MASK if lengths is None else torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    prompts = tuple(Prompt(Problem(str(i), "?"), task, "?", (1,), i) for i, task in enumerate(tasks))
    sampled = torch.full(mask.shape, -LOG2) * mask
    rollout = Rollout(
        prompts, torch.zeros(mask.shape, dtype=torch.int64), mask, sampled, torch.ones(len(mask), dtype=torch.bool),
        ("",) * len(mask), SamplingParams(),
    )  # fmt: skip
    values = torch.tensor([1.0, 0.0, 0.5, 0.5]) if len(mask) == 4 else torch.zeros(len(mask))
    scores = Scores(values, {"s": values}, torch.zeros(len(mask), dtype=torch.bool))
    given = torch.zeros(mask.shape) if advantages is None else advantages
    return Experience(rollout, scores, values, Advantages(given), sampled if old is None else old, None, {})


def test_each_task_has_its_mean_reward_where_there_are_several():
    assert statistics.of_tasks(experience(tasks=("a", "b"))) == {"reward/raw_mean/a": 0.5, "reward/raw_mean/b": 0.5}
    assert statistics.of_tasks(experience(tasks=("a", "a"))) == {}


def test_lengths_have_quantiles():
    found = statistics.of_lengths(experience(tasks=("a",), lengths=list(range(1, 12))))
    assert [found[f"response/length_{name}"] for name in ("q10", "q50", "q90", "max")] == [2.0, 6.0, 10.0, 11.0]


def test_advantages_have_their_spread_over_tokens_that_count():
    """Tokens 1, -1, 3, 1, 1, 1: mean 1, variance (0 + 4 + 4) / 6; what stands off the mask is not seen."""
    values = torch.tensor([[1.0, -1.0], [3.0, 99.0], [1.0, 1.0], [1.0, -99.0]])
    found = statistics.of_advantages(experience(advantages=values))
    assert (found["advantage/mean"], found["advantage/min"], found["advantage/max"]) == (1.0, -1.0, 3.0)
    assert found["advantage/std"] == pytest.approx(math.sqrt(8 / 6))
    assert found["advantage/abs_mean"] == pytest.approx(8 / 6)


def test_the_kl_to_the_sampler_is_that_of_the_distribution_that_drew():
    """Sampler ½ a token, trainer ¼: k1 = log 2, k3 = ¼/½ − 1 + log 2; nothing where both are the same."""
    found = statistics.of_sampler(experience(old=-2 * LOG2 * MASK))
    assert found["kl/sampler_k1_per_token"] == pytest.approx(LOG2)
    assert found["kl/sampler_k3_per_token"] == pytest.approx(LOG2 - 0.5)
    assert found["importance/token_ratio_q50"] == pytest.approx(0.5)
    assert statistics.of_sampler(experience()) == {}


def test_quantiles_are_values_of_the_sample_from_below():
    places = {"min": 0.0, "q50": 0.5, "q99": 0.99, "max": 1.0}
    found = quantiles(torch.arange(200).flip(0).float(), places)
    assert found == {"min": 0.0, "q50": 99.0, "q99": 197.0, "max": 199.0}
    assert quantiles(torch.tensor([3.0]), places) == dict.fromkeys(places, 3.0)


def test_quantiles_over_many_batches_are_those_of_all_values_and_start_anew():
    gathered = Quantiles("ratio/", {"q50": 0.5})
    for part in torch.arange(101.0)[torch.randperm(101, generator=torch.Generator().manual_seed(0))].split(17):
        gathered.add(part)
    assert gathered.pop() == {"ratio/q50": 50.0}
    assert gathered.pop() == {}
    gathered.add(torch.tensor([7.0]))
    assert gathered.pop() == {"ratio/q50": 7.0}
