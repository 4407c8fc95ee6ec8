"""Batch arithmetic."""

import pytest

from rlhf_lightning.algorithms.advantages import Group
from rlhf_lightning.algorithms.transforms import GroupNormalize
from rlhf_lightning.errors import ConfigError
from rlhf_lightning.modules.part_checks import check_group_size
from rlhf_lightning.modules.plan import BatchPlan


def plan(**changed: int) -> BatchPlan:
    paper = {
        "prompts_per_rollout": 1024,
        "samples_per_prompt": 4,
        "updates_per_rollout": 8,
        "epochs_per_rollout": 1,
        "token_budget": 16384,
    }
    return BatchPlan(**{**paper, **changed})


def test_the_papers_schedule():
    """§4.1: rollouts of 1024·M, a step per 128·M samples: always 8 updates."""
    for samples in (1, 2, 4, 8, 16):
        described = plan(samples_per_prompt=samples)
        assert described.samples_per_rollout == 1024 * samples
        assert described.steps_per_rollout == 8
        assert f"8 updates of 128 prompts × {samples}" in str(described)


def test_uneven_splits_are_allowed_and_said():
    assert "3 updates of 3–4 prompts" in str(plan(prompts_per_rollout=10, updates_per_rollout=3))


@pytest.mark.parametrize(
    "name", ["prompts_per_rollout", "samples_per_prompt", "updates_per_rollout", "epochs_per_rollout", "token_budget"]
)
def test_numbers_must_be_positive(name):
    with pytest.raises(ConfigError, match=f"{name} must be at least 1, got 0"):
        plan(**{name: 0})


def test_more_updates_than_prompts():
    with pytest.raises(ConfigError, match=r"updates_per_rollout \(8\).*prompts_per_rollout \(4\).*Nearest.*4"):
        plan(prompts_per_rollout=4)


@pytest.mark.parametrize("part", [Group(), GroupNormalize()], ids=lambda p: type(p).__name__)
def test_one_sample_with_a_group_estimator(part):
    with pytest.raises(ConfigError, match=f"samples_per_prompt is 1, but {type(part).__name__}.*at least 2"):
        check_group_size(1, [part])
    check_group_size(2, [part])
