"""masked_sum, masked_mean, masked_var, masked_whiten, last_true."""

import math
import statistics

import pytest
import torch
from torch.autograd import gradcheck

from rlhf_lightning.functional import last_true, masked_mean, masked_sum, masked_var, masked_whiten

X = torch.tensor([[1.0, 2.0, 3.0, math.nan], [5.0, math.inf, math.nan, 7.0]], dtype=torch.float64)
MASK = torch.tensor([[True, True, True, False], [True, False, False, False]])
REDUCTIONS = [masked_sum, masked_mean, masked_var]


def test_hand_worked_values():
    assert masked_sum(X, MASK).item() == 11.0
    assert masked_sum(X, MASK, dim=1).tolist() == [6.0, 5.0]
    assert masked_mean(X, MASK).item() == 2.75
    assert masked_mean(X, MASK, dim=1).tolist() == [2.0, 5.0]
    assert masked_var(X, MASK).item() == 2.1875  # (1.75² + 0.75² + 0.25² + 2.25²) / 4
    assert masked_var(X, MASK, dim=1).tolist() == pytest.approx([2 / 3, 0.0])


def test_hand_worked_whitening():
    whitened = masked_whiten(torch.tensor([1.0, 3.0, 99.0]), torch.tensor([True, True, False]), eps=0.0)
    assert whitened.tolist() == [-1.0, 1.0, 0.0]
    kept = masked_whiten(torch.tensor([1.0, 3.0, 99.0]), torch.tensor([True, True, False]), shift_mean=False, eps=0.0)
    assert kept.tolist() == [1.0, 3.0, 0.0]


def test_with_a_full_mask_they_are_the_statistics_of_the_standard_library():
    values = [0.3, -1.2, 4.5, 2.2, 0.0]
    x, mask = torch.tensor(values, dtype=torch.float64), torch.ones(5, dtype=torch.bool)
    assert masked_mean(x, mask).item() == pytest.approx(statistics.fmean(values))
    assert masked_var(x, mask).item() == pytest.approx(statistics.pvariance(values))


@pytest.mark.parametrize("shift_mean", [True, False])
def test_whitened_values_have_variance_one_and_the_promised_mean(shift_mean: bool):
    x = torch.randn(6, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 9 + 4
    mask = torch.arange(7) < torch.tensor([[7], [1], [3], [0], [5], [6]])
    counted = masked_whiten(x, mask, shift_mean=shift_mean)[mask].tolist()
    assert statistics.pvariance(counted) == pytest.approx(1.0)
    assert statistics.fmean(counted) == pytest.approx(0.0 if shift_mean else statistics.fmean(x[mask].tolist()))


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_padding_changes_nothing(reduction):
    padded = torch.cat([X, torch.full((2, 3), math.nan, dtype=torch.float64)], dim=1)
    padded_mask = torch.cat([MASK, torch.zeros(2, 3, dtype=torch.bool)], dim=1)
    assert torch.equal(reduction(padded, padded_mask), reduction(X, MASK))
    assert torch.equal(reduction(padded, padded_mask, dim=1), reduction(X, MASK, dim=1))
    assert torch.equal(masked_whiten(padded, padded_mask)[:, :4], masked_whiten(X, MASK))
    assert masked_whiten(padded, padded_mask)[:, 4:].eq(0).all()


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_nothing_counted_gives_zero(reduction):
    assert reduction(X, torch.zeros_like(MASK)).item() == 0.0
    assert reduction(X, torch.zeros_like(MASK), dim=1).tolist() == [0.0, 0.0]


def test_equal_values_whiten_to_almost_nothing():
    whitened = masked_whiten(torch.full((3, 5), 0.1), torch.ones(3, 5, dtype=torch.bool))
    assert whitened.abs().max() < 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("value", [0.1, 1000.1, -1e8, 1e-30])
@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (7, 9001)])
def test_equal_values_have_no_variance_and_whiten_to_nothing(dtype, value, shape):
    x = torch.full(shape, value, dtype=dtype)
    mask = torch.ones(shape, dtype=torch.bool)
    rounding = 4 * torch.finfo(dtype).eps * abs(value)
    assert abs(masked_mean(x, mask) - x[0, 0]) <= rounding
    assert masked_var(x, mask).item() == 0.0 and not masked_var(x, mask, dim=1).any()
    assert not masked_whiten(x, mask).any()
    assert (masked_whiten(x, mask, shift_mean=False) - x).abs().max() <= rounding


def test_values_equal_but_for_rounding_whiten_to_nothing():
    x = torch.tensor([[1000.1, 1000.1]])
    x[0, 1] = torch.nextafter(x[0, 1], torch.tensor(math.inf))
    mask = torch.ones(1, 2, dtype=torch.bool)
    assert x[0, 0] != x[0, 1]
    assert not masked_whiten(x, mask).any() and masked_var(x, mask) == 0


@pytest.mark.parametrize("offset", [0.0, 1000.0, 1e6])
def test_a_large_offset_changes_no_whitened_value(offset):
    """A quarter apart is exact in float32 up to 4 million; sums over 30,000 such values are not."""
    x = torch.arange(30_000).remainder(5).float()[None] / 4 + offset
    found = masked_whiten(x, torch.ones(1, 30_000, dtype=torch.bool))
    expected = (torch.arange(30_000).remainder(5).double() / 4 - 0.5) / 0.125**0.5
    torch.testing.assert_close(found[0], expected.float(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("function", [*REDUCTIONS, masked_whiten])
def test_gradient(function):
    x = torch.randn(2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)
    assert gradcheck(lambda x: function(x, MASK), x)


def test_gradient_is_zero_off_the_mask():
    x = torch.ones(2, 4, requires_grad=True)
    masked_mean(x, MASK).backward()
    assert x.grad is not None
    assert x.grad.tolist() == [[0.25, 0.25, 0.25, 0.0], [0.25, 0.0, 0.0, 0.0]]


def test_last_true_of_padded_holed_and_empty_rows():
    mask = torch.tensor([[1, 1, 1, 0], [1, 0, 1, 0], [0, 0, 0, 0], [1, 1, 1, 1]], dtype=torch.bool)
    assert last_true(mask).int().tolist() == [[0, 0, 1, 0], [0, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 1]]


def test_last_true_does_not_move_with_padding():
    padded = torch.cat([MASK, torch.zeros(2, 3, dtype=torch.bool)], dim=1)
    assert torch.equal(last_true(padded)[:, :4], last_true(MASK))
    assert not last_true(padded)[:, 4:].any()


def test_last_true_marks_one_place_in_every_row_that_has_any():
    mask = torch.rand(40, 9, generator=torch.Generator().manual_seed(2)) < 0.2
    assert torch.equal(last_true(mask).sum(dim=1), mask.any(dim=1).long())
    assert not (last_true(mask) & ~mask).any()


@pytest.mark.parametrize("scale", [1e20, 1e30, 1e38])
def test_values_whose_squares_are_beyond_float32_are_whitened_all_the_same(scale):
    x = torch.tensor([0.0, 1.0, 2.0, 3.0])
    whitened = masked_whiten(x * scale, torch.ones(4, dtype=torch.bool))
    torch.testing.assert_close(whitened, (x - 1.5) / math.sqrt(1.25))
