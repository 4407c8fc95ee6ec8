"""clipped_value_loss."""

import itertools
import math

import pytest
import torch
from torch.autograd import gradcheck
from torch.nn import functional as F

from reference import losses as slow
from rlhf_lightning.functional import aggregate, clipped_value_loss

GRID = list(itertools.product([-1.0, 0.45, 0.55, 2.0], [0.5, -0.1], [0.0, 1.0, 3.0]))
VALUES, OLD, RETURNS = (torch.tensor(column, dtype=torch.float64) for column in zip(*GRID, strict=True))


def test_hand_worked_values():
    # V 3 is held at 2, and the held error is the larger; V 1 is near enough; V 5 is held at 2, the free error is larger
    values, old, returns = torch.tensor([3.0, 1.0, 5.0]), torch.ones(3), torch.tensor([4.0, 0.0, 2.0])
    assert clipped_value_loss(values, old, returns, clip=1.0).tolist() == [2.0, 0.5, 4.5]
    assert clipped_value_loss(values, old, returns, clip=None).tolist() == [0.5, 0.5, 4.5]


def test_it_is_the_formula():
    expected = [slow.value_loss(*point, clip=0.2) for point in GRID]
    assert clipped_value_loss(VALUES, OLD, RETURNS, clip=0.2).tolist() == pytest.approx(expected)


@pytest.mark.parametrize("clip", [None, math.inf])
def test_without_a_bound_it_is_half_the_squared_error(clip: float | None):
    expected = F.mse_loss(VALUES, RETURNS, reduction="none") / 2
    assert torch.allclose(clipped_value_loss(VALUES, OLD, RETURNS, clip=clip), expected)


def test_it_is_never_below_the_plain_loss():
    plain = clipped_value_loss(VALUES, OLD, RETURNS, clip=None)
    assert (clipped_value_loss(VALUES, OLD, RETURNS, clip=0.1) >= plain).all()


def test_padding_changes_nothing():
    mask = torch.ones(1, len(GRID), dtype=torch.bool)
    short = clipped_value_loss(VALUES[None], OLD[None], RETURNS[None], clip=0.2)
    wide = clipped_value_loss(
        *(F.pad(x[None], (0, 4), value=5.0 * i) for i, x in enumerate((VALUES, OLD, RETURNS))), clip=0.2
    )
    mean = aggregate(wide, F.pad(mask, (0, 4)), mode="token-mean").item()
    assert mean == pytest.approx(aggregate(short, mask, mode="token-mean").item(), rel=1e-12)


@pytest.mark.parametrize("clip", [None, 0.2])
def test_gradient(clip: float | None):
    values = VALUES.clone().requires_grad_()
    assert gradcheck(lambda v: clipped_value_loss(v, OLD, RETURNS, clip=clip), values)


def test_a_negative_bound_is_refused():
    with pytest.raises(ValueError, match="clip must not be negative"):
        clipped_value_loss(VALUES, OLD, RETURNS, clip=-0.1)
