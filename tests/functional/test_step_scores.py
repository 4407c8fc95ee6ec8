"""aggregate_steps: one number for a solution from its steps' scores."""

import math

import pytest
import torch
from torch.autograd import gradcheck
from torch.nn import functional as F

from rlhf_lightning.functional import STEP_AGGREGATIONS, aggregate_steps

LOG3 = math.log(3.0)  # sigmoid(log 3) = 3/4
SCORES = torch.tensor([[LOG3, -LOG3, 0.0], [LOG3, 9.0, 9.0]], dtype=torch.float64)
MASK = torch.tensor([[True, True, True], [True, False, False]])
BY_HAND = {
    "last": [0.0, LOG3],
    "min": [-LOG3, LOG3],
    "product": [math.log(3 / 4 * 1 / 4 * 1 / 2), math.log(3 / 4)],
    "mean": [0.5, 0.75],
}


def test_the_modes_are_the_four():
    assert set(STEP_AGGREGATIONS) == set(BY_HAND)


@pytest.mark.parametrize("mode", STEP_AGGREGATIONS)
def test_hand_worked_values(mode):
    assert aggregate_steps(SCORES, MASK, mode=mode).tolist() == pytest.approx(BY_HAND[mode])


@pytest.mark.parametrize("mode", STEP_AGGREGATIONS)
def test_padding_and_holes_change_nothing(mode):
    wide = aggregate_steps(F.pad(SCORES, (2, 3), value=math.nan), F.pad(MASK, (2, 3)), mode=mode)
    assert torch.equal(wide, aggregate_steps(SCORES, MASK, mode=mode))
    holed = aggregate_steps(SCORES[:1], torch.tensor([[True, False, True]]), mode=mode)
    assert torch.equal(holed, aggregate_steps(SCORES[:1, [0, 2]], torch.ones(1, 2).bool(), mode=mode))


def test_one_step_is_ordered_alike_by_all_modes():
    one = torch.tensor([[0.3], [-2.0], [5.0]], dtype=torch.float64)
    for mode in STEP_AGGREGATIONS:
        assert aggregate_steps(one, torch.ones(3, 1).bool(), mode=mode).argsort().tolist() == [1, 0, 2]


def test_equal_steps_give_their_own_score():
    scores, mask = torch.full((1, 4), -0.7, dtype=torch.float64), torch.ones(1, 4).bool()
    assert aggregate_steps(scores, mask, mode="last") == aggregate_steps(scores, mask, mode="min") == -0.7
    assert aggregate_steps(scores, mask, mode="product").item() == pytest.approx(4 * math.log(1 / (1 + math.exp(0.7))))


def test_the_product_of_very_wrong_steps_stays_finite():
    scores = torch.full((1, 50), -300.0)
    assert aggregate_steps(scores, torch.ones(1, 50).bool(), mode="product").item() == pytest.approx(-15_000)


@pytest.mark.parametrize("mode", STEP_AGGREGATIONS)
def test_gradient(mode):
    scores = SCORES.clone().requires_grad_()
    assert gradcheck(lambda z: aggregate_steps(z, MASK, mode=mode), scores)


@pytest.mark.parametrize(
    ("scores", "mask", "mode", "message"),
    [
        (SCORES, MASK, "prod", "did you mean 'product'"),
        (SCORES, MASK[:, :2], "last", r"one shape \(B, S\)"),
        (SCORES, torch.tensor([[True, True, True], [False, False, False]]), "min", r"without a step: \[1\]"),
    ],
)
def test_what_cannot_be(scores, mask, mode, message):
    with pytest.raises(ValueError, match=message):
        aggregate_steps(scores, mask, mode=mode)
