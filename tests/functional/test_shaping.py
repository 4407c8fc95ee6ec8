"""clip_rewards, asymmetric_shrink and soft_overlong."""

import math

import pytest
import torch
from torch.autograd import gradcheck

from reference import losses as slow
from rlhf_lightning.functional import asymmetric_shrink, clip_rewards, soft_overlong

REWARDS = torch.tensor([-3.0, -1.0, 0.0, 0.5, 4.0], dtype=torch.float64)
PADDED = torch.cat([REWARDS, torch.tensor([math.nan, 0.0])])


def test_hand_worked_values():
    assert clip_rewards(REWARDS, low=-2.0, high=1.0).tolist() == [-2.0, -1.0, 0.0, 0.5, 1.0]
    assert asymmetric_shrink(REWARDS, alpha=0.25).tolist() == [-0.75, -0.25, 0.0, 0.5, 4.0]


def test_they_are_the_formulas():
    rewards = torch.randn(200, generator=torch.Generator().manual_seed(0)).tolist()
    x = torch.tensor(rewards, dtype=torch.float64)
    assert clip_rewards(x, low=-0.3, high=0.8).tolist() == pytest.approx([min(max(r, -0.3), 0.8) for r in rewards])
    assert asymmetric_shrink(x, alpha=0.7).tolist() == pytest.approx([0.7 * r if r < 0 else r for r in rewards])


def test_open_bounds_and_alpha_one_change_nothing():
    assert torch.equal(clip_rewards(REWARDS, low=-math.inf, high=math.inf), REWARDS)
    assert torch.equal(asymmetric_shrink(REWARDS, alpha=1.0), REWARDS)


def test_clipping_twice_is_clipping_once_and_shrinking_twice_multiplies():
    once = clip_rewards(REWARDS, low=-1.5, high=0.4)
    assert torch.equal(clip_rewards(once, low=-1.5, high=0.4), once)
    twice = asymmetric_shrink(asymmetric_shrink(REWARDS, alpha=0.5), alpha=0.5)
    assert torch.equal(twice, asymmetric_shrink(REWARDS, alpha=0.25))


@pytest.mark.parametrize(
    "function", [lambda r: clip_rewards(r, low=-2, high=1), lambda r: asymmetric_shrink(r, alpha=0.5)]
)
def test_padding_changes_nothing(function):
    assert torch.equal(function(PADDED)[:5], function(REWARDS))


@pytest.mark.parametrize(
    "function", [lambda r: clip_rewards(r, low=-2, high=1), lambda r: asymmetric_shrink(r, alpha=0.5)]
)
def test_gradient(function):
    assert gradcheck(function, torch.tensor([-3.0, -1.0, 0.5, 4.0], dtype=torch.float64, requires_grad=True))


@pytest.mark.parametrize("alpha", [-0.1, 1.1, math.nan])
def test_alpha_out_of_range_is_refused(alpha: float):
    with pytest.raises(ValueError, match="alpha"):
        asymmetric_shrink(REWARDS, alpha=alpha)


def test_crossed_bounds_are_refused():
    with pytest.raises(ValueError, match="low <= high"):
        clip_rewards(REWARDS, low=1.0, high=-1.0)


def test_hand_worked_punishments_of_length():
    lengths = torch.tensor([1, 6, 7, 8, 10, 11, 50])
    assert soft_overlong(lengths, max_length=10, buffer=4).tolist() == [0, 0, -0.25, -0.5, -1, -1, -1]


def test_punishments_of_length_are_the_formula():
    expected = [slow.soft_overlong(n, 20, 7) for n in range(1, 30)]
    assert soft_overlong(torch.arange(1, 30), max_length=20, buffer=7).tolist() == pytest.approx(expected)


def test_a_buffer_as_long_as_the_limit_punishes_from_the_first_token():
    assert soft_overlong(torch.tensor([1, 2, 4]), max_length=4, buffer=4).tolist() == [-0.25, -0.5, -1.0]


def test_gradient_of_the_punishment():
    lengths = torch.tensor([2.0, 7.5, 9.1, 12.0], dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda n: soft_overlong(n, max_length=10, buffer=4), lengths)


@pytest.mark.parametrize("buffer", [0, 11])
def test_a_buffer_that_does_not_fit_is_refused(buffer: int):
    with pytest.raises(ValueError, match=f"buffer={buffer}, max_length=10"):
        soft_overlong(torch.tensor([3]), max_length=10, buffer=buffer)
