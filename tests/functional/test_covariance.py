"""token_covariance, random_marks, largest_marks, clip_cov_loss, kl_cov_loss."""

import math

import pytest
import torch
from torch.autograd import gradcheck
from torch.nn.functional import pad

from reference import losses as slow
from rlhf_lightning.functional import (
    clip_cov_loss,
    clipped_policy_loss,
    kl_cov_loss,
    largest_marks,
    random_marks,
    token_covariance,
)

MASK = torch.arange(6) < torch.tensor([6, 2, 4])[:, None]


def normal(seed: int) -> torch.Tensor:
    return torch.randn(3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


LOGPROBS, ADVANTAGES = -1 + 0.3 * normal(0), normal(1)
NEW = LOGPROBS + 0.3 * normal(2)
MARKS = normal(3) > 0.3


def test_hand_worked_covariances():
    # means -2 and 1; the last token does not count
    logprobs, advantages = torch.tensor([[-1.0, -3.0, -2.0, 9.0]]), torch.tensor([[3.0, 0.0, 0.0, 9.0]])
    mask = torch.tensor([[True, True, True, False]])
    assert token_covariance(logprobs, advantages, mask).tolist() == [[2.0, 1.0, 0.0, 0.0]]


def test_covariances_are_the_formula():
    expected = slow.covariances(LOGPROBS[MASK].tolist(), ADVANTAGES[MASK].tolist())
    assert token_covariance(LOGPROBS, ADVANTAGES, MASK)[MASK].tolist() == pytest.approx(expected)


def test_their_mean_is_the_covariance():
    both = torch.stack([LOGPROBS[MASK], ADVANTAGES[MASK]])
    found = token_covariance(LOGPROBS, ADVANTAGES, MASK)[MASK].mean().item()
    assert found == pytest.approx(torch.cov(both, correction=0)[0, 1].item())


def test_equal_advantages_have_none():
    assert token_covariance(LOGPROBS, torch.ones_like(LOGPROBS), MASK).abs().max().item() == 0.0


def test_random_marks_are_eligible_and_as_many_as_asked():
    marks = random_marks(MASK, count=5, seed=1)
    assert int(marks.sum()) == 5 and not (marks & ~MASK).any()
    assert torch.equal(random_marks(MASK, count=99, seed=1), MASK)
    assert not random_marks(MASK, count=0, seed=1).any()
    assert not random_marks(torch.zeros_like(MASK), count=3, seed=1).any()


def test_random_marks_follow_the_seed_and_reach_every_place():
    assert torch.equal(random_marks(MASK, count=4, seed=7), random_marks(MASK, count=4, seed=7))
    times = sum(random_marks(MASK, count=3, seed=seed).int() for seed in range(800))
    share = times[MASK] / 800
    # 3 of 12, so a quarter each; 5 standard deviations are 0.077
    assert share.tolist() == pytest.approx([0.25] * 12, abs=0.077)


def test_largest_marks_by_hand():
    values = torch.tensor([[1.0, 5.0, 9.0], [5.0, 2.0, 5.0]])
    mask = torch.tensor([[True, True, False], [True, True, True]])
    assert largest_marks(values, mask, count=2).tolist() == [[False, True, False], [True, False, False]]
    assert largest_marks(values, mask, count=9).tolist() == mask.tolist()
    assert not largest_marks(values, mask, count=0).any()


def test_hand_worked_losses():
    # ratios 2, 2, 1/2; the second and third token are marked
    new, advantages = torch.tensor([2.0, 2.0, 0.5]).log(), torch.tensor([1.0, 1.0, 3.0])
    marks = torch.tensor([False, True, True])
    clipped = clip_cov_loss(new, torch.zeros(3), advantages, marks, clip_low=0.2, clip_high=0.2)
    assert clipped.tolist() == pytest.approx([-1.2, 0.0, 0.0])
    held = kl_cov_loss(new, torch.zeros(3), advantages, marks, beta=2.0)
    assert held.tolist() == pytest.approx([-2.0, -2.0 + 2 * math.log(2), -1.5 + 2 * math.log(2)])


def test_without_marks_they_are_the_losses_they_add_to():
    none = torch.zeros_like(MASK)
    clip = clip_cov_loss(NEW, LOGPROBS, ADVANTAGES, none, clip_low=0.2, clip_high=0.3)
    assert torch.equal(clip, clipped_policy_loss(NEW, LOGPROBS, ADVANTAGES, clip_low=0.2, clip_high=0.3))
    free = clipped_policy_loss(NEW, LOGPROBS, ADVANTAGES, clip_low=math.inf, clip_high=math.inf)
    assert torch.equal(kl_cov_loss(NEW, LOGPROBS, ADVANTAGES, none, beta=3.0), free)


def test_marked_tokens_have_no_gradient_in_clip_cov():
    new = NEW.clone().requires_grad_()
    clip_cov_loss(new, LOGPROBS, ADVANTAGES, MARKS, clip_low=9.0, clip_high=9.0).sum().backward()
    assert new.grad is not None
    assert torch.allclose(new.grad, torch.where(MARKS, 0, -(NEW - LOGPROBS).exp() * ADVANTAGES))


def test_marked_tokens_are_pulled_back_in_kl_cov():
    new = NEW.clone().requires_grad_()
    kl_cov_loss(new, LOGPROBS, torch.zeros_like(NEW), MARKS, beta=0.7).sum().backward()
    assert new.grad is not None
    assert torch.allclose(new.grad, torch.where(MARKS, 0.7 * (NEW - LOGPROBS).sign(), 0))


def test_padding_changes_nothing():
    def wide(x: torch.Tensor) -> torch.Tensor:
        return pad(x, (0, 4), value=7.0)

    mask = pad(MASK, (0, 4))
    covariance = token_covariance(wide(LOGPROBS), wide(ADVANTAGES), mask)
    assert covariance[mask].tolist() == pytest.approx(token_covariance(LOGPROBS, ADVANTAGES, MASK)[MASK].tolist())
    assert torch.equal(largest_marks(wide(LOGPROBS), mask, count=3)[:, :6], largest_marks(LOGPROBS, MASK, count=3))
    assert torch.equal(random_marks(mask, count=3, seed=5)[:, :6], random_marks(MASK, count=3, seed=5))


@pytest.mark.parametrize(
    "loss",
    [
        lambda new: clip_cov_loss(new, LOGPROBS, ADVANTAGES, MARKS, clip_low=0.2, clip_high=0.28),
        lambda new: kl_cov_loss(new, LOGPROBS, ADVANTAGES, MARKS, beta=0.5),
        lambda new: token_covariance(new, ADVANTAGES, MASK),
    ],
)
def test_gradient(loss):
    assert gradcheck(loss, NEW.clone().requires_grad_())


def test_a_negative_beta_is_refused():
    with pytest.raises(ValueError, match="beta must not be negative, got -1"):
        kl_cov_loss(NEW, LOGPROBS, ADVANTAGES, MARKS, beta=-1)


def test_rounding_is_not_penalised():
    """Before the first step all log-ratios are rounding; a sign of it would be noise of full size in the gradient."""
    new = torch.tensor([3e-6, -5e-6, 0.0], requires_grad=True)
    marks = torch.ones(3, dtype=torch.bool)
    kl_cov_loss(new, torch.zeros(3), torch.zeros(3), marks, beta=1.0).sum().backward()
    assert torch.equal(new.grad, torch.zeros(3))
