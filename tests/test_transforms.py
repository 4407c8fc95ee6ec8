"""Reward transforms: what each does to four rewards in two groups, worked by hand."""

import pytest
import torch

from rlhf_lightning.algorithms.transforms import (
    AsymmetricShrink,
    ClipRewards,
    GroupNormalize,
    LengthPenalty,
    MissingEosPenalty,
    SoftOverlong,
    Whiten,
)
from rlhf_lightning.errors import ConfigError
from rlhf_lightning.pipeline import transform
from rlhf_lightning.types import Rewards


@pytest.fixture
def rewards() -> Rewards:
    return Rewards(
        values=torch.tensor([1.0, 3.0, -20.0, 20.0]),
        group_size=2,
        lengths=torch.tensor([2, 10, 4, 6]),
        finished=torch.tensor([True, False, True, True]),
    )


def test_clip(rewards):
    assert ClipRewards(low=-5, high=2)(rewards).values.tolist() == [1.0, 2.0, -5.0, 2.0]


def test_group_normalize(rewards):
    expected = torch.tensor([-1.0, 1.0, -1.0, 1.0])
    torch.testing.assert_close(GroupNormalize()(rewards).values, expected, atol=1e-5, rtol=0)


def test_asymmetric_shrink(rewards):
    assert AsymmetricShrink(alpha=0.25)(rewards).values.tolist() == [1.0, 3.0, -5.0, 20.0]


def test_whiten_over_the_rollout(rewards):
    # mean 1, variance ((0)^2 + 2^2 + 21^2 + 19^2) / 4 = 201.5
    whitened = Whiten()(rewards).values
    torch.testing.assert_close(whitened, torch.tensor([0.0, 2.0, -21.0, 19.0]) / 201.5**0.5, atol=1e-4, rtol=0)


def test_whiten_without_shift_keeps_the_mean(rewards):
    whitened = Whiten(shift_mean=False)(rewards).values
    assert whitened.mean().item() == pytest.approx(1.0, abs=1e-5)


def test_length_penalty(rewards):
    assert LengthPenalty(per_token=0.5, free_tokens=4)(rewards).values.tolist() == [1.0, 0.0, -20.0, 19.0]


def test_missing_eos_penalty(rewards):
    assert MissingEosPenalty(penalty=2.0)(rewards).values.tolist() == [1.0, 1.0, -20.0, 20.0]


def test_soft_overlong(rewards):
    # lengths 2, 10, 4, 6 of at most 8, punished from 4 on
    punished = SoftOverlong(max_length=8, buffer=4, penalty=2.0)(rewards).values
    assert punished.tolist() == [1.0, 1.0, -20.0, 19.0]


def test_who_compares_responses_says_so():
    steps = [AsymmetricShrink, ClipRewards, GroupNormalize, LengthPenalty, MissingEosPenalty, SoftOverlong, Whiten]
    assert [step for step in steps if step.compares] == [GroupNormalize, Whiten]


def test_order_is_the_configurations(rewards):
    clip_first, _ = transform([ClipRewards(-2, 2), GroupNormalize()], rewards)
    normalize_first, _ = transform([GroupNormalize(), ClipRewards(-2, 2)], rewards)
    torch.testing.assert_close(clip_first.values, torch.tensor([-1.0, 1.0, -1.0, 1.0]), atol=1e-5, rtol=0)
    torch.testing.assert_close(normalize_first.values, clip_first.values, atol=1e-5, rtol=0)
    shrink_last, _ = transform([GroupNormalize(), AsymmetricShrink(0.5)], rewards)
    shrink_first, _ = transform([AsymmetricShrink(0.5), GroupNormalize()], rewards)
    torch.testing.assert_close(shrink_last.values, torch.tensor([-0.5, 1.0, -0.5, 1.0]), atol=1e-5, rtol=0)
    torch.testing.assert_close(shrink_first.values, torch.tensor([-1.0, 1.0, -1.0, 1.0]), atol=1e-5, rtol=0)


def test_every_step_is_logged_before_and_after(rewards):
    _, logged = transform([ClipRewards(-5, 5), AsymmetricShrink(0.5)], rewards)
    assert logged["reward/raw_mean"] == pytest.approx(1.0)
    assert logged["reward/after_clip_mean"] == pytest.approx((1 + 3 - 5 + 5) / 4)
    assert logged["reward/after_asymmetric_shrink_mean"] == pytest.approx((1 + 3 - 2.5 + 5) / 4)
    assert logged["reward/after_clip_std"] == pytest.approx(torch.tensor([1.0, 3, -5, 5]).std(correction=0).item())


@pytest.mark.parametrize(
    "step",
    [
        ClipRewards(-2, 2),
        GroupNormalize(),
        AsymmetricShrink(),
        Whiten(),
        LengthPenalty(0.1),
        MissingEosPenalty(),
        SoftOverlong(8, 4),
    ],
    ids=lambda step: step.name,
)
def test_input_is_not_edited(step, rewards):
    before = rewards.values.clone()
    step(rewards)
    assert torch.equal(rewards.values, before)


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda: ClipRewards(1, 1), "low"),
        (lambda: AsymmetricShrink(1.5), "alpha"),
        (lambda: LengthPenalty(-1), "per_token"),
        (lambda: MissingEosPenalty(-1), "penalty"),
        (lambda: SoftOverlong(8, 9), r"soft_overlong: buffer must be in \[1, max_length = 8\], got 9"),
        (lambda: SoftOverlong(8, 4, -1), "soft_overlong: penalty"),
    ],
)
def test_impossible_arguments_are_named(make, key):
    with pytest.raises(ConfigError, match=key):
        make()
