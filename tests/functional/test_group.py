"""group_normalize, group_center, leave_one_out, length_weighted_center, equal_groups."""

import math
import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck

from reference import advantages as slow
from rlhf_lightning.functional import (
    equal_groups,
    group_center,
    group_normalize,
    leave_one_out,
    length_weighted_center,
)


def length_weighted(rewards: torch.Tensor, *, group_size: int) -> torch.Tensor:
    """Lengths 1, 2, …, G within each group."""
    lengths = torch.arange(len(rewards)) % group_size + 1
    return length_weighted_center(rewards, lengths, group_size=group_size)


BASELINES = [group_normalize, group_center, leave_one_out, length_weighted]


def tensor(values: list[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_hand_worked_values():
    rewards = tensor([1.0, 3.0, 0.0, 0.0, 0.0, 4.0])
    assert group_center(rewards, group_size=2).tolist() == [-1.0, 1.0, 0.0, 0.0, -2.0, 2.0]
    assert group_normalize(rewards, group_size=2, eps=0.0).tolist() == [-1.0, 1.0, 0.0, 0.0, -1.0, 1.0]
    assert leave_one_out(rewards, group_size=2).tolist() == [-2.0, 2.0, 0.0, 0.0, -4.0, 4.0]
    # lengths 3, 1: baselines (3·1 + 1·3)/4, 0, (0 + 4)/4
    lengths = torch.tensor([3, 1, 3, 1, 3, 1])
    assert length_weighted_center(rewards, lengths, group_size=2).tolist() == [-0.5, 1.5, 0.0, 0.0, -1.0, 3.0]


def test_the_standard_deviation_is_the_populations():
    # one success in four: mean 1/4, population variance 3/16
    result = group_normalize(tensor([1.0, 0.0, 0.0, 0.0]), group_size=4, eps=0.0)
    assert result.tolist() == pytest.approx([math.sqrt(3)] + [-1 / math.sqrt(3)] * 3)


@settings(max_examples=25, derandomize=True, deadline=None)
@given(st.lists(st.lists(st.floats(-5, 5).map(lambda x: round(x, 2)), min_size=3, max_size=3), min_size=1, max_size=4))
def test_they_are_the_formulas(groups: list[list[float]]):
    rewards = tensor([r for group in groups for r in group])
    eps = 1e-6
    expected = {
        group_normalize: [x for g in groups for x in slow.normalized(g, eps)],
        group_center: [r - slow.mean(g) for g in groups for r in g],
        leave_one_out: [x for g in groups for x in slow.less_others(g)],
        length_weighted: [x for g in groups for x in slow.less_length_weighted_mean(g, [1, 2, 3])],
    }
    for function, values in expected.items():
        assert function(rewards, group_size=3).tolist() == pytest.approx(values, abs=1e-8)


def test_normalized_groups_have_mean_zero_and_deviation_one_whatever_the_scale():
    rewards = torch.randn(40, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    once = group_normalize(rewards, group_size=8, eps=0.0)
    assert torch.allclose(once, group_normalize(37 * rewards - 5, group_size=8, eps=0.0))
    for group in once.reshape(5, 8).tolist():
        assert statistics.fmean(group) == pytest.approx(0.0, abs=1e-12)
        assert statistics.pstdev(group) == pytest.approx(1.0)


def test_leave_one_out_of_centered_rewards_scales_them_by_g_over_g_minus_1():
    rewards = tensor([0.2, 1.0, -3.0, 0.7])
    assert leave_one_out(rewards, group_size=4).tolist() == pytest.approx(
        [4 / 3 * x for x in group_center(rewards, group_size=4).tolist()]
    )


@pytest.mark.parametrize("function", BASELINES)
def test_other_groups_change_nothing(function):
    first, padding = tensor([1.0, 0.0, 2.0]), tensor([9.0, -9.0, 0.0, 0.0, 0.0, 0.0])
    alone, together = function(first, group_size=3), function(torch.cat([first, padding]), group_size=3)
    assert together[:3].tolist() == pytest.approx(alone.tolist(), rel=1e-12)


@pytest.mark.parametrize("function", BASELINES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("value", [0.0, 0.1, -0.7, 1e8, 1e-30])
def test_all_equal_rewards_give_exactly_zero(function, dtype: torch.dtype, value: float):
    rewards = torch.full((21,), value, dtype=dtype)
    assert function(rewards, group_size=7).tolist() == [0.0] * 21


@pytest.mark.parametrize("function", BASELINES)
def test_rewards_equal_but_for_rounding_give_exactly_zero(function):
    rewards = tensor([0.1 + 0.2, 0.3, 0.3])
    assert rewards[0] != rewards[1]
    assert function(rewards, group_size=3).tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("function", BASELINES)
def test_a_large_offset_changes_nothing(function):
    """In float32: a quarter apart is exact up to 4 million, the sums of 300 such rewards are not."""
    rewards = (torch.arange(600) * 7 % 5).float() / 4
    expected = function(rewards.double(), group_size=300)
    torch.testing.assert_close(function(rewards + 1e6, group_size=300), expected.float(), atol=1e-5, rtol=0)


def test_small_real_differences_are_not_lost():
    rewards = tensor([1.0, 1.0 + 1e-9, 1.0 - 1e-9])
    assert not equal_groups(rewards, group_size=3).any()
    expected = [0.0, math.sqrt(1.5), -math.sqrt(1.5)]
    assert group_normalize(rewards, group_size=3, eps=0.0).tolist() == pytest.approx(expected, abs=1e-6)


def test_with_equal_lengths_the_length_weighted_mean_is_the_mean():
    rewards = tensor([0.2, 1.0, -3.0, 0.7, 0.5, 0.5])
    result = length_weighted_center(rewards, torch.full((6,), 17), group_size=3)
    assert result.tolist() == pytest.approx(group_center(rewards, group_size=3).tolist())


@pytest.mark.parametrize("function", [group_normalize, group_center, length_weighted])
def test_a_group_of_one_gives_zero(function):
    assert function(tensor([3.0, -1.0]), group_size=1).tolist() == [0.0, 0.0]


def test_leave_one_out_refuses_a_group_of_one():
    with pytest.raises(ValueError, match="at least 2"):
        leave_one_out(tensor([3.0, -1.0]), group_size=1)


@pytest.mark.parametrize("function", BASELINES)
def test_no_rewards_give_none(function):
    assert function(torch.zeros(0), group_size=4).shape == (0,)


@pytest.mark.parametrize("function", [*BASELINES, equal_groups])
def test_an_uneven_batch_is_refused(function):
    with pytest.raises(ValueError, match="5 rewards do not make groups of 2"):
        function(torch.zeros(5), group_size=2)


def test_equal_groups_names_the_groups():
    rewards = tensor([1.0, 1.0, 0.0, 1.0, 0.1 + 0.2, 0.3])
    assert equal_groups(rewards, group_size=2).tolist() == [True, False, True]


def test_equal_groups_within_a_spread():
    rewards = tensor([1.0, 1.25, 0.0, 0.5, 2.0, 2.0])
    assert equal_groups(rewards, group_size=2, spread=0.25).tolist() == [True, False, True]


@pytest.mark.parametrize("function", BASELINES)
def test_gradient(function):
    rewards = tensor([1.0, 0.0, 2.0, 0.3, -0.4, 0.1]).requires_grad_()
    assert gradcheck(lambda r: function(r, group_size=3), rewards)


@pytest.mark.parametrize("function", BASELINES)
def test_gradient_of_an_all_equal_group_is_finite(function):
    rewards = tensor([1.0, 1.0, 1.0]).requires_grad_()
    function(rewards, group_size=3).square().sum().backward()
    assert rewards.grad is not None
    assert rewards.grad.tolist() == [0.0, 0.0, 0.0]


def test_an_infinite_reward_makes_no_group_of_equals():
    rewards = torch.tensor([torch.inf, 0.0, 1.0, 2.0, 3.0, 3.0, 3.0, 3.0])
    assert equal_groups(rewards, group_size=4).tolist() == [False, True]
    centered = group_center(rewards, group_size=4)
    assert not centered[:4].isfinite().any()
    assert centered[4:].tolist() == [0.0] * 4
