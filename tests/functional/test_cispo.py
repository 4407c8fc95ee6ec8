"""cispo_loss."""

import itertools
import math

import pytest
import torch
from torch.autograd import gradcheck

from reference import losses as slow
from rlhf_lightning.functional import aggregate, cispo_loss

GRID = list(itertools.product([-2.0, -0.4, -0.05, 0.05, 0.3, 1.5], [-2.0, -0.5, 0.5, 1.0]))
LOG_RATIO, ADVANTAGE = (torch.tensor(column, dtype=torch.float64) for column in zip(*GRID, strict=True))
OLD = torch.full_like(LOG_RATIO, -1.5)
NEW = OLD + LOG_RATIO


def gradient(**bounds: float) -> list[float]:
    new = NEW.clone().requires_grad_()
    (found,) = torch.autograd.grad(cispo_loss(new, OLD, ADVANTAGE, **bounds).sum(), new)
    return found.tolist()


def test_hand_worked_values():
    # ratios 2, 1/2, 1/8 with weights held within 1/4 and 3/2
    new = torch.tensor([2.0, 0.5, 0.125]).log()
    loss = cispo_loss(new, torch.zeros(3), torch.tensor([1.0, -1.0, 2.0]), clip_low=0.75, clip_high=0.5)
    expected = [-1.5 * math.log(2), 0.5 * math.log(0.5), -0.5 * math.log(0.125)]
    assert loss.tolist() == pytest.approx(expected)


def test_its_gradient_is_the_formula():
    expected = [-slow.cispo_weight(-1.5 + r, -1.5, 0.2, 0.28) * a for r, a in GRID]
    assert gradient(clip_low=0.2, clip_high=0.28) == pytest.approx(expected)


def test_with_nothing_clipped_its_gradient_is_that_of_the_ratio():
    assert gradient(clip_low=1.0, clip_high=math.inf) == pytest.approx([-math.exp(r) * a for r, a in GRID])


def test_on_policy_it_is_reinforce():
    new = OLD.clone().requires_grad_()
    cispo_loss(new, OLD, ADVANTAGE, clip_low=0.2, clip_high=0.2).sum().backward()
    assert new.grad is not None
    assert torch.equal(new.grad, -ADVANTAGE)


def test_no_token_loses_its_gradient():
    assert 0.0 not in gradient(clip_low=0.1, clip_high=0.1)


def test_padding_changes_nothing():
    def mean_loss(new, old, advantages, mask):
        return aggregate(cispo_loss(new, old, advantages, clip_low=1, clip_high=2), mask, mode="token-mean").item()

    short = [x[None] for x in (NEW, OLD, ADVANTAGE)]
    wide = [torch.cat([x, torch.full((1, 5), 7.0, dtype=x.dtype)], dim=1) for x in short]
    mask = torch.ones_like(short[0], dtype=torch.bool)
    wide_mask = torch.cat([mask, torch.zeros(1, 5, dtype=torch.bool)], dim=1)
    assert mean_loss(*wide, wide_mask) == pytest.approx(mean_loss(*short, mask), rel=1e-12)


def test_gradient_where_the_weight_does_not_move():
    """Elsewhere the loss's own derivative is not wanted: the weight counts as a constant."""
    new = (OLD + 1.0).requires_grad_()
    assert gradcheck(lambda new: cispo_loss(new, OLD, ADVANTAGE, clip_low=0.2, clip_high=0.28), new)


def test_impossible_bounds_are_refused():
    with pytest.raises(ValueError, match="clip_high=-1"):
        cispo_loss(NEW, OLD, ADVANTAGE, clip_low=0.2, clip_high=-1)
