"""process_advantages."""

import random

import pytest
import torch
from torch.autograd import gradcheck
from torch.nn.functional import pad

from reference import advantages as slow
from rlhf_lightning.functional import group_normalize, last_true, process_advantages


def tensors(groups: list[list[dict[int, float]]], lengths: list[int]) -> tuple[torch.Tensor, ...]:
    """Scores, ends and mask of responses given as {last token of a step: score}."""
    width = max(lengths)
    steps, ends = torch.zeros(len(lengths), width, dtype=torch.float64), torch.zeros(len(lengths), width).bool()
    for row, response in enumerate(r for group in groups for r in group):
        for end, score in response.items():
            steps[row, end], ends[row, end] = score, True
    return steps, ends, torch.arange(width) < torch.tensor(lengths)[:, None]


TWO = [[{1: 3.0, 3: 1.0}, {2: 1.0, 3: 3.0}]]
"""One group: mean 2, standard deviation 1."""


def test_hand_worked_values():
    result = process_advantages(*tensors(TWO, [4, 4]), group_size=2, eps=0.0)
    assert result.tolist() == [[0.0, 0.0, -1.0, -1.0], [0.0, 0.0, 0.0, 1.0]]


def test_tokens_after_the_last_step_have_none():
    result = process_advantages(*tensors([[{1: 4.0}, {0: 0.0}]], [3, 3]), group_size=2, eps=0.0)
    assert result.tolist() == [[1.0, 1.0, 0.0], [-1.0, 0.0, 0.0]]


def test_it_is_the_formula():
    draw = random.Random(3)
    lengths = [draw.randint(2, 7) for _ in range(6)]
    responses = [
        {end: draw.uniform(-1, 1) for end in sorted(draw.sample(range(n), draw.randint(1, n)))} for n in lengths
    ]
    groups = [responses[:3], responses[3:]]
    result = process_advantages(*tensors(groups, lengths), group_size=3, eps=1e-6)
    expected = [*slow.process(groups[0], lengths[:3], 1e-6), *slow.process(groups[1], lengths[3:], 1e-6)]
    for row, (n, wanted) in enumerate(zip(lengths, expected, strict=True)):
        assert result[row, :n].tolist() == pytest.approx(wanted)


def test_with_one_step_at_the_end_it_is_the_group_normalisation():
    mask = torch.arange(5) < torch.tensor([5, 1, 3, 2, 2, 4])[:, None]
    scores = torch.tensor([1.0, 0.0, 0.5, 2.0, 2.0, 2.0], dtype=torch.float64)
    ends = last_true(mask)
    result = process_advantages(scores[:, None] * ends, ends, mask, group_size=3)
    assert torch.equal(result, group_normalize(scores, group_size=3)[:, None] * mask)


def test_all_equal_scores_give_exactly_zero():
    steps, ends, mask = tensors([[{0: 0.1 + 0.2, 2: 0.3}, {1: 0.3}], [{0: 0.0}, {1: 0.0}]], [3, 3, 3, 3])
    assert process_advantages(steps, ends, mask, group_size=2).abs().max().item() == 0.0


def test_a_group_of_one_compares_its_own_steps():
    one = process_advantages(*tensors([[{0: 1.0, 1: 3.0}]], [2]), group_size=1, eps=0.0)
    assert one.tolist() == [[0.0, 1.0]]
    assert process_advantages(*tensors([[{1: 3.0}]], [2]), group_size=1).tolist() == [[0.0, 0.0]]


def test_groups_without_any_step_give_zero():
    result = process_advantages(*tensors([[{}, {}], [{0: 1.0}, {}]], [2, 2, 2, 2]), group_size=2)
    assert result.abs().max().item() == 0.0


def test_padding_and_scores_between_steps_change_nothing():
    steps, ends, mask = tensors(TWO, [4, 4])
    noisy = torch.where(ends, steps, 9.0)
    wide = process_advantages(pad(noisy, (0, 3), value=7.0), pad(ends, (0, 3)), pad(mask, (0, 3)), group_size=2)
    assert torch.equal(wide[:, :4], process_advantages(steps, ends, mask, group_size=2))
    assert not wide[:, 4:].any()


def test_gradient():
    steps, ends, mask = tensors([[{0: 1.0, 2: -0.5}, {1: 2.0, 3: 0.3}]], [3, 4])
    assert gradcheck(lambda s: process_advantages(s, ends, mask, group_size=2), steps.requires_grad_())


def test_an_uneven_batch_is_refused():
    with pytest.raises(ValueError, match="2 responses do not make groups of 3"):
        process_advantages(*tensors(TWO, [4, 4]), group_size=3)
