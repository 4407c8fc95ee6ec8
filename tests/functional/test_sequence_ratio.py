"""sequence_log_ratio and sequence_policy_loss (GSPO)."""

import math

import pytest
import torch
from torch.autograd import gradcheck
from torch.nn.functional import pad

from reference import losses as slow
from rlhf_lightning.functional import aggregate, clipped_policy_loss, sequence_log_ratio, sequence_policy_loss

LENGTHS = [3, 1, 2, 4]
MASK = torch.arange(4) < torch.tensor(LENGTHS)[:, None]
ADVANTAGES = torch.tensor([1.0, -1.0, 2.0, -0.5], dtype=torch.float64)[:, None] * MASK
BOUNDS = {"clip_low": 0.1, "clip_high": 0.15}


def normal(seed: int) -> torch.Tensor:
    return torch.randn(4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


OLD = -1.5 + 0.2 * normal(0)
NEW = OLD + 0.15 * normal(1)


def test_hand_worked_ratios():
    new = torch.tensor([[2.0, 8.0, 9.0]]).log()
    mask = torch.tensor([[True, True, False]])
    assert sequence_log_ratio(new, torch.zeros(1, 3), mask, normalize=False).exp().item() == pytest.approx(16.0)
    assert sequence_log_ratio(new, torch.zeros(1, 3), mask, normalize=True).exp().item() == pytest.approx(4.0)


def test_hand_worked_loss():
    # token ratios 2 and 8: s = 4, held at 1.5 where that is less
    new, mask = torch.tensor([[2.0, 8.0]]).log().expand(2, 2), torch.ones(2, 2, dtype=torch.bool)
    advantages = torch.tensor([[1.0, 1.0], [-1.0, -1.0]])
    loss = sequence_policy_loss(new, torch.zeros(2, 2), advantages, mask, clip_low=0.5, clip_high=0.5)
    assert loss.flatten().tolist() == pytest.approx([-1.5, -1.5, 4.0, 4.0])


def test_the_papers_mean_is_the_papers_objective():
    loss = aggregate(sequence_policy_loss(NEW, OLD, ADVANTAGES, MASK, **BOUNDS), MASK, mode="seq-mean-token-mean")
    rows = [(NEW[b, :n].tolist(), OLD[b, :n].tolist(), ADVANTAGES[b, 0].item()) for b, n in enumerate(LENGTHS)]
    assert loss.item() == pytest.approx(-sum(slow.gspo_objective(*row, 0.1, 0.15) for row in rows) / 4)


def test_responses_of_one_token_have_ppos_loss():
    new, old = (x.reshape(16, 1).requires_grad_() for x in (NEW.clone(), OLD.clone()))
    advantages, mask = normal(2).reshape(16, 1), torch.ones(16, 1, dtype=torch.bool)
    ours = sequence_policy_loss(new, old, advantages, mask, **BOUNDS)
    theirs = clipped_policy_loss(new, old, advantages, **BOUNDS)
    assert ours.flatten().tolist() == pytest.approx(theirs.flatten().tolist())
    gradients = [torch.autograd.grad(loss.sum(), new)[0].flatten().tolist() for loss in (ours, theirs)]
    assert gradients[0] == pytest.approx(gradients[1])


def test_a_response_is_clipped_as_a_whole():
    """Token ratios far outside the bounds that cancel leave s at 1; one more token may not move alone."""
    new = torch.tensor([[2.0, -2.0], [2.0, 2.0]], requires_grad=True)
    mask = torch.ones(2, 2, dtype=torch.bool)
    sequence_policy_loss(new, torch.zeros(2, 2), torch.ones(2, 2), mask, **BOUNDS).sum().backward()
    assert new.grad is not None
    assert new.grad.tolist() == [[-1.0, -1.0], [0.0, 0.0]]


def test_padding_changes_nothing():
    wide = [pad(x, (0, 3), value=5.0) for x in (NEW, OLD)]
    ours = sequence_policy_loss(*wide, pad(ADVANTAGES, (0, 3)), pad(MASK, (0, 3)), **BOUNDS)[:, :4]
    assert torch.equal(ours[MASK], sequence_policy_loss(NEW, OLD, ADVANTAGES, MASK, **BOUNDS)[MASK])
    assert sequence_log_ratio(NEW, OLD, torch.zeros_like(MASK), normalize=True).tolist() == [0.0] * 4


@pytest.mark.parametrize("normalize", [True, False])
def test_gradient_of_the_ratio(normalize: bool):
    new = NEW.clone().requires_grad_()
    assert gradcheck(lambda new: sequence_log_ratio(new, OLD, MASK, normalize=normalize), new)


def test_gradient_of_the_loss():
    """Of the mean over a response: a single token's loss has its own log-prob's gradient alone, by design."""
    new = NEW.clone().requires_grad_()

    def means(new: torch.Tensor) -> torch.Tensor:
        loss = sequence_policy_loss(new, OLD, ADVANTAGES, MASK, **BOUNDS)
        return (loss * MASK).sum(1) / MASK.sum(1)

    assert gradcheck(means, new)


def test_impossible_bounds_are_refused():
    with pytest.raises(ValueError, match="clip_low=-1"):
        sequence_policy_loss(NEW, OLD, ADVANTAGES, MASK, clip_low=-1, clip_high=0.2)


def test_the_ratio_may_overflow_and_is_then_seen():
    log_s = sequence_log_ratio(torch.full((1, 2), 80.0), torch.full((1, 2), -80.0), MASK[:1, :2], normalize=True)
    assert log_s.exp().item() == math.inf
