"""The dynamic sampler: which groups go, which come in their place, and what happens when the budget is used up."""

import pytest
import torch

from rlhf_lightning.errors import ConfigError
from rlhf_lightning.protocols import Sampler
from rlhf_lightning.samplers import DynamicSampler, InProcessSampler
from rlhf_lightning.types import Problem, Prompt, Rollout, SamplingParams, Scores, StepScores

ALIVE = {0, 2, 11, 12, 14}
"""Prompts whose two samples score 0 and 1; those of all others score 1 twice."""


def prompt(index: int) -> Prompt:
    return Prompt(Problem(str(index), str(index)), "t", str(index), (index + 1,), index)


class Canned(Sampler):
    """A prompt's responses have ``index % 3 + 1`` tokens, each its seed."""

    def __init__(self):
        self.params, self.calls = SamplingParams(max_new_tokens=8), []

    def bind(self, model, tokenizer):
        self.calls.append(("bind", model, tokenizer))

    def sync(self, weights_version):
        self.calls.append(("sync", weights_version))

    def release(self):
        self.calls.append(("release",))

    def __call__(self, prompts, *, samples_per_prompt, seeds, params=None):
        self.calls.append(("draw", [p.index for p in prompts], params))
        lengths = torch.tensor([p.index % 3 + 1 for p in prompts]).repeat_interleave(samples_per_prompt)
        mask = torch.arange(int(lengths.max())) < lengths[:, None]
        return Rollout(
            prompts=tuple(prompts),
            tokens=seeds[:, None] * mask,
            mask=mask,
            logprobs=-0.5 * seeds[:, None] * mask,
            finished=seeds % 2 == 0,
            texts=tuple(f"{seed}" for seed in seeds.tolist()),
            params=params or self.params,
            weights_version=3,
        )


def score(rollout: Rollout) -> Scores:
    values = torch.tensor([float(p.index not in ALIVE or k) for p in rollout.prompts for k in range(2)])
    return Scores(values, {"one": values}, values < 0.5, StepScores(rollout.tokens.float(), rollout.mask))


def seeds_of(prompts) -> torch.Tensor:
    return torch.tensor([100 * p.index + k for p in prompts for k in range(2)], dtype=torch.int64)


def further_of(indices):
    left = iter(indices)

    def take(count):
        prompts = [prompt(index) for _, index in zip(range(count), left, strict=False)]
        return prompts, seeds_of(prompts)

    return take


def refilled(sampler, indices, own=(0, 1, 2, 3)):
    prompts = [prompt(index) for index in own]
    rollout = sampler(prompts, samples_per_prompt=2, seeds=seeds_of(prompts))
    return sampler.refill(rollout, score(rollout), further=further_of(indices), score=score)


def test_dead_groups_are_replaced_in_order_by_those_that_are_alive():
    inner = Canned()
    rollout, scores, logged = refilled(DynamicSampler(inner), [10, 11, 12, 13])
    # 1 and 3 are dead; 10 is too, 11 takes the place of 1; then 12 that of 3
    assert [p.index for p in rollout.prompts] == [0, 11, 2, 12]
    assert [call[1] for call in inner.calls] == [[0, 1, 2, 3], [10, 11], [12]]
    assert scores.values.tolist() == [0, 1] * 4
    # prompts 10, 11 and 12 have 2, 3 and 1 tokens a response
    assert logged == {
        "refill/rounds": 2.0,
        "refill/dead_before": 2.0,
        "refill/replaced": 2.0,
        "refill/prompts": 3.0,
        "refill/tokens": 12.0,
        "refill/dead_after": 0.0,
        "refill/score_before": 0.75,
    }


def test_everything_of_a_response_moves_with_it():
    rollout, scores, _ = refilled(DynamicSampler(Canned()), [10, 11, 12])
    seeds = seeds_of(rollout.prompts)
    assert seeds.tolist() == [0, 1, 1100, 1101, 200, 201, 1200, 1201]
    assert rollout.lengths.tolist() == [1, 1, 3, 3, 3, 3, 1, 1]
    assert torch.equal(rollout.tokens, seeds[:, None] * rollout.mask)
    assert torch.equal(rollout.logprobs, -0.5 * seeds[:, None] * rollout.mask)
    assert torch.equal(rollout.finished, seeds % 2 == 0)
    assert rollout.texts == tuple(str(seed) for seed in seeds.tolist())
    assert torch.equal(scores.failed, scores.parts["one"] < 0.5)
    assert torch.equal(scores.steps.ends, rollout.mask)
    assert torch.equal(scores.steps.values, rollout.tokens.float())
    assert (rollout.weights_version, rollout.group_size) == (3, 2)


def test_the_result_is_as_wide_as_its_longest_response():
    rollout, _, _ = refilled(DynamicSampler(Canned()), [12], own=(0, 5))  # prompt 5 has three tokens and is dead
    assert rollout.tokens.shape == rollout.mask.shape == rollout.logprobs.shape == (4, 1)


def test_what_is_still_dead_stays_when_the_rounds_are_used_up():
    inner = Canned()
    rollout, scores, logged = refilled(DynamicSampler(inner, max_rounds=2), [20, 21, 22, 11, 12])
    assert [p.index for p in rollout.prompts] == [0, 11, 2, 3]
    assert scores.values.tolist() == [0, 1, 0, 1, 0, 1, 1, 1]
    assert (logged["refill/rounds"], logged["refill/replaced"], logged["refill/dead_after"]) == (2, 1, 1)
    assert len(inner.calls) == 3


def test_what_is_still_dead_stays_when_there_are_no_more_prompts():
    rollout, _, logged = refilled(DynamicSampler(Canned(), max_rounds=9), [20, 12])
    assert [p.index for p in rollout.prompts] == [0, 12, 2, 3]
    assert (logged["refill/prompts"], logged["refill/dead_after"]) == (2, 1)


def test_a_rollout_without_dead_groups_is_left_alone():
    inner = Canned()
    rollout, _, logged = refilled(DynamicSampler(inner), [10], own=(0, 2))
    assert [p.index for p in rollout.prompts] == [0, 2]
    assert logged["refill/rounds"] == logged["refill/prompts"] == 0
    assert len(inner.calls) == 1


def test_tolerance_counts_near_equal_scores_as_equal():
    _, _, strict = refilled(DynamicSampler(Canned(), tolerance=0.99), [])
    _, _, lax = refilled(DynamicSampler(Canned(), tolerance=1.0), [])
    assert (strict["refill/dead_before"], lax["refill/dead_before"]) == (2, 4)


def test_everything_else_is_the_samplers_inside():
    inner, told = Canned(), []
    sampler = DynamicSampler(inner)
    assert sampler.params is inner.params and sampler.exact is inner.exact is True
    sampler.on_tokens = told.append
    assert inner.on_tokens == sampler.on_tokens == told.append
    greedy = SamplingParams(temperature=0.0)
    sampler.bind("model", "tokenizer")
    sampler.sync(4)
    sampler([prompt(1)], samples_per_prompt=1, seeds=torch.tensor([5]), params=greedy)
    sampler.release()
    assert inner.calls == [("bind", "model", "tokenizer"), ("sync", 4), ("draw", [1], greedy), ("release",)]


def test_a_sampler_refills_nothing_unless_it_says_so():
    sampler = Canned()
    assert (sampler.refills, DynamicSampler.refills) == (False, True)
    rollout = sampler([prompt(1)], samples_per_prompt=2, seeds=seeds_of([prompt(1)]))
    scores = score(rollout)
    assert sampler.refill(rollout, scores, further=further_of([0]), score=score) == (rollout, scores, {})


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: DynamicSampler(max_rounds=0), "sampler dynamic: max_rounds must be at least 1, got 0"),
        (lambda: DynamicSampler(tolerance=-0.1), "sampler dynamic: tolerance must not be negative, got -0.1"),
        (lambda: DynamicSampler(DynamicSampler()), "dynamic itself"),
    ],
)
def test_impossible_arguments_are_named(make, said):
    with pytest.raises(ConfigError, match=said):
        make()


def test_it_draws_in_process_unless_told_otherwise():
    assert isinstance(DynamicSampler().sampler, InProcessSampler)
