import math

import pytest
import torch

from rlhf_lightning.evaluation.bootstrap import bootstrap_interval


def test_it_comes_close_to_the_interval_of_the_normal_distribution():
    # 400 zeros and ones, half each: standard error 1/40; 1.96 of them, within 4 % for the draws' own noise
    values = torch.tensor([0.0, 1.0] * 200)
    low, high = bootstrap_interval(values, draws=4000)
    assert low.item() == pytest.approx(0.5 - 1.96 / 40, abs=0.004)
    assert high.item() == pytest.approx(0.5 + 1.96 / 40, abs=0.004)


def test_two_prompts_by_hand():
    # means 0, 1/2, 1 with chances 1/4, 1/2, 1/4: the middle half of them is [0 … 1/2 …1] cut within the outer steps
    low, high = bootstrap_interval(torch.tensor([0.0, 1.0]), level=0.4)
    assert (low.item(), high.item()) == (0.5, 0.5)
    low, high = bootstrap_interval(torch.tensor([0.0, 1.0]), level=0.9)
    assert (low.item(), high.item()) == (0.0, 1.0)


def test_columns_share_their_resamples_so_equal_differences_have_no_width():
    generator = torch.Generator().manual_seed(0)
    one = torch.rand(30, generator=generator, dtype=torch.float64)
    low, high = bootstrap_interval(torch.stack([one, one + 0.25], dim=1))
    assert low.shape == high.shape == (2,)
    assert (low[1] - low[0]).item() == pytest.approx(0.25)
    assert (high[1] - high[0]).item() == pytest.approx(0.25)
    alone = bootstrap_interval(one)
    assert (alone[0].item(), alone[1].item()) == pytest.approx((low[0].item(), high[0].item()))
    assert bootstrap_interval((one + 0.25) - one)[0].item() == pytest.approx(0.25)


def test_seeds_say_which_resamples_and_one_prompt_has_no_width():
    values = torch.arange(10.0)
    assert bootstrap_interval(values)[0] == bootstrap_interval(values)[0]
    assert bootstrap_interval(values, draws=50, seed=1)[0] != bootstrap_interval(values, draws=50, seed=2)[0]
    assert [end.item() for end in bootstrap_interval(torch.tensor([0.3]))] == pytest.approx([0.3, 0.3])


def test_wider_levels_give_wider_intervals():
    values = torch.arange(50.0)
    widths = [math.dist(*(end.reshape(1).tolist() for end in bootstrap_interval(values, level=x))) for x in (0.5, 0.9)]
    assert widths[0] < widths[1]


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="no prompts"):
        bootstrap_interval(torch.zeros(0))
    with pytest.raises(ValueError, match="level"):
        bootstrap_interval(torch.zeros(2), level=1.0)
