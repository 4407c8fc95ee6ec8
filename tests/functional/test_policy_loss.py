"""clipped_policy_loss."""

import itertools
import math

import pytest
import torch
from torch.autograd import gradcheck

from reference import losses as slow
from rlhf_lightning.functional import aggregate, clipped_policy_loss

GRID = list(itertools.product([-2.0, -0.4, -0.05, 0.05, 0.3, 1.5], [-2.0, -0.5, 0.5, 1.0]))
LOG_RATIO, ADVANTAGE = (torch.tensor(column, dtype=torch.float64) for column in zip(*GRID, strict=True))
OLD = torch.full_like(LOG_RATIO, -1.5)


def test_hand_worked_values():
    # ratios 2, 2, 1/2, 1/2, 1 with bounds 0.8 and 1.25
    new = torch.tensor([2.0, 2.0, 0.5, 0.5, 1.0]).log()
    advantages = torch.tensor([1.0, -1.0, 1.0, -1.0, 3.0])
    loss = clipped_policy_loss(new, torch.zeros(5), advantages, clip_low=0.2, clip_high=0.25)
    assert loss.tolist() == pytest.approx([-1.25, 2.0, -0.5, 0.8, -3.0])


def test_hand_worked_dual_clip():
    new = torch.tensor([5.0, 5.0, 2.0]).log()
    advantages = torch.tensor([-1.0, 1.0, -1.0])
    loss = clipped_policy_loss(new, torch.zeros(3), advantages, clip_low=0.2, clip_high=0.2, dual_clip=3.0)
    assert loss.tolist() == pytest.approx([3.0, -1.2, 2.0])


@pytest.mark.parametrize("dual_clip", [None, 3.0, 1.2])
def test_it_is_the_formula(dual_clip: float | None):
    options = {"clip_low": 0.2, "clip_high": 0.28, "dual_clip": dual_clip}
    result = clipped_policy_loss(OLD + LOG_RATIO, OLD, ADVANTAGE, **options)
    expected = [slow.policy_loss(-1.5 + r, -1.5, a, 0.2, 0.28, dual_clip) for r, a in GRID]
    assert result.tolist() == pytest.approx(expected)


def test_without_bounds_it_is_the_importance_weighted_policy_gradient():
    result = clipped_policy_loss(OLD + LOG_RATIO, OLD, ADVANTAGE, clip_low=math.inf, clip_high=math.inf)
    assert result.tolist() == pytest.approx([-math.exp(r) * a for r, a in GRID])


def test_on_policy_its_gradient_is_that_of_reinforce():
    new = OLD.clone().requires_grad_()
    clipped_policy_loss(new, OLD, ADVANTAGE, clip_low=0.2, clip_high=0.2).sum().backward()
    assert new.grad is not None
    assert new.grad.tolist() == pytest.approx((-ADVANTAGE).tolist())


def test_beyond_the_bounds_nothing_pushes_further():
    new = torch.tensor([1.5, -1.5, 1.5, -1.5], requires_grad=True)
    advantages = torch.tensor([1.0, -1.0, -1.0, 1.0])
    clipped_policy_loss(new, torch.zeros(4), advantages, clip_low=0.2, clip_high=0.2).sum().backward()
    assert new.grad is not None
    assert new.grad[:2].tolist() == [0.0, 0.0]
    assert new.grad[2:].tolist() == pytest.approx([math.exp(1.5), -math.exp(-1.5)])


def test_padding_changes_nothing():
    def mean_loss(new, old, advantages, mask):
        loss = clipped_policy_loss(new, old, advantages, clip_low=0.2, clip_high=0.2)
        return aggregate(loss, mask, mode="token-mean").item()

    short = [x[None] for x in (OLD + LOG_RATIO, OLD, ADVANTAGE)]
    wide = [torch.cat([x, torch.full((1, 5), 7.0, dtype=x.dtype)], dim=1) for x in short]
    mask = torch.ones_like(short[0], dtype=torch.bool)
    wide_mask = torch.cat([mask, torch.zeros(1, 5, dtype=torch.bool)], dim=1)
    assert mean_loss(*wide, wide_mask) == pytest.approx(mean_loss(*short, mask), rel=1e-12)


@pytest.mark.parametrize("dual_clip", [None, 3.0])
def test_gradient(dual_clip: float | None):
    new = (OLD + LOG_RATIO).requires_grad_()
    options = {"clip_low": 0.2, "clip_high": 0.28, "dual_clip": dual_clip}
    assert gradcheck(lambda new: clipped_policy_loss(new, OLD, ADVANTAGE, **options), new)


@pytest.mark.parametrize(
    ("low", "high", "dual", "message"), [(-0.1, 0.2, None, "clip_low=-0.1"), (0.2, -1, None, "-1"), (0, 0, 1.0, "dual")]
)
def test_impossible_bounds_are_refused(low: float, high: float, dual: float | None, message: str):
    with pytest.raises(ValueError, match=message):
        clipped_policy_loss(OLD, OLD, ADVANTAGE, clip_low=low, clip_high=high, dual_clip=dual)
