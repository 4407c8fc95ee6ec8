"""aggregate and aggregation_weights."""

import math

import pytest
import torch
from torch.autograd import gradcheck
from torch.nn import functional as F

from reference import losses as slow
from rlhf_lightning.functional import AGGREGATION_MODES, aggregate, aggregation_weights

LOSSES = [[1.0, 2.0, 3.0], [5.0], [-1.0, 0.5]]
LOSS = torch.tensor([[1.0, 2.0, 3.0], [5.0, math.nan, math.inf], [-1.0, 0.5, 9.0]], dtype=torch.float64)
MASK = torch.tensor([[True, True, True], [True, False, False], [True, True, False]])
DENOMINATOR = {"token-mean": None, "seq-mean-token-mean": None, "seq-mean-token-sum": None, "constant": 12.0}
COUNT = {"token-mean": 6, "seq-mean-token-mean": 3, "seq-mean-token-sum": 3, "constant": 12.0}


def test_the_modes_are_the_four():
    assert set(AGGREGATION_MODES) == set(COUNT)


def test_hand_worked_values():
    expected = {"token-mean": 1.75, "seq-mean-token-mean": 2.25, "seq-mean-token-sum": 3.5, "constant": 0.875}
    for mode, value in expected.items():
        assert aggregate(LOSS, MASK, mode=mode, denominator=DENOMINATOR[mode]).item() == pytest.approx(value)


def test_hand_worked_weights():
    weights = aggregation_weights(MASK, mode="seq-mean-token-mean", dtype=torch.float64)
    third, sixth, ninth = 1 / 3, 1 / 6, 1 / 9
    assert weights.flatten().tolist() == pytest.approx([ninth, ninth, ninth, third, 0, 0, sixth, sixth, 0])
    assert aggregation_weights(MASK, mode="constant", denominator=4).sum().item() == 1.5


@pytest.mark.parametrize("mode", AGGREGATION_MODES)
def test_it_is_the_formula(mode: str):
    expected = slow.aggregate(LOSSES, mode, constant=12.0)
    assert aggregate(LOSS, MASK, mode=mode, denominator=DENOMINATOR[mode]).item() == pytest.approx(expected)


@pytest.mark.parametrize("mode", AGGREGATION_MODES)
def test_it_is_the_weighted_sum(mode: str):
    loss = LOSS.where(MASK, 0)
    weights = aggregation_weights(MASK, mode=mode, denominator=DENOMINATOR[mode], dtype=torch.float64)
    assert (loss * weights).sum() == aggregate(loss, MASK, mode=mode, denominator=DENOMINATOR[mode])


@pytest.mark.parametrize("mode", ["token-mean", "seq-mean-token-mean"])
def test_the_weights_of_a_mean_add_up_to_one(mode: str):
    assert aggregation_weights(MASK, mode=mode, dtype=torch.float64).sum().item() == pytest.approx(1.0)


@pytest.mark.parametrize("mode", AGGREGATION_MODES)
@pytest.mark.parametrize("split", [[[0], [1], [2]], [[0, 2], [1]], [[2], [1, 0]]])
def test_parts_add_up_to_the_whole_whatever_the_split(mode: str, split: list[list[int]]):
    """Both ways: slices of the weights of the whole, or the global denominator given to each part."""
    whole = aggregate(LOSS, MASK, mode=mode, denominator=DENOMINATOR[mode]).item()
    weights = aggregation_weights(MASK, mode=mode, denominator=DENOMINATOR[mode], dtype=torch.float64)
    sliced = sum((LOSS[rows].where(MASK[rows], 0) * weights[rows]).sum().item() for rows in split)
    counted = sum(aggregate(LOSS[r], MASK[r], mode=mode, denominator=torch.tensor(COUNT[mode])).item() for r in split)
    assert sliced == pytest.approx(whole, rel=1e-12)
    assert counted == pytest.approx(whole, rel=1e-12)


@pytest.mark.parametrize("mode", AGGREGATION_MODES)
def test_padding_changes_nothing(mode: str):
    """Neither more columns nor empty rows."""
    loss, mask = F.pad(LOSS, (0, 2, 0, 3), value=math.nan), F.pad(MASK, (0, 2, 0, 3))
    padded = aggregate(loss, mask, mode=mode, denominator=DENOMINATOR[mode]).item()
    assert padded == pytest.approx(aggregate(LOSS, MASK, mode=mode, denominator=DENOMINATOR[mode]).item(), rel=1e-12)
    assert aggregation_weights(mask, mode=mode, denominator=DENOMINATOR[mode])[~mask].eq(0).all()


@pytest.mark.parametrize("mode", AGGREGATION_MODES)
def test_gradient(mode: str):
    loss = torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    assert gradcheck(lambda x: aggregate(x, MASK, mode=mode, denominator=DENOMINATOR[mode]), loss)


@pytest.mark.parametrize("mode", AGGREGATION_MODES)
@pytest.mark.parametrize("shape", [(2, 3), (0, 3), (2, 0)])
def test_nothing_counted_gives_zero(mode: str, shape: tuple[int, int]):
    nothing = torch.zeros(shape, dtype=torch.bool)
    assert aggregate(torch.ones(shape), nothing, mode=mode, denominator=DENOMINATOR[mode]).item() == 0.0


def test_counts_are_exact_for_narrow_losses():
    mask = torch.ones(1, 257, dtype=torch.bool)
    weights = aggregation_weights(mask, mode="token-mean", dtype=torch.bfloat16)
    assert weights.dtype == torch.bfloat16
    assert weights[0, 0] == torch.tensor(1 / 257, dtype=torch.bfloat16)


def test_an_unknown_mode_lists_the_modes_and_the_nearest():
    with pytest.raises(ValueError, match=r"'token_mean': did you mean 'token-mean'.*seq-mean-token-sum.*constant"):
        aggregation_weights(MASK, mode="token_mean")


def test_constant_needs_its_denominator():
    with pytest.raises(ValueError, match="needs a denominator"):
        aggregate(LOSS, MASK, mode="constant")


@pytest.mark.parametrize("denominator", [0, -1.0, math.nan, torch.tensor(0)])
def test_an_impossible_denominator_is_refused(denominator: float):
    with pytest.raises(ValueError, match="denominator must be above 0"):
        aggregate(LOSS, MASK, mode="token-mean", denominator=denominator)
