"""Packing: rows against hand literals, bins against their defining properties."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_lightning.functional.packing import balanced_bins, pack_groups, row_starts, split_by_budget

QUICK = settings(derandomize=True, max_examples=60, deadline=None)


def padded(rows, width=None):
    width = width or max(map(len, rows))
    tokens = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    return tokens, torch.tensor([[t < len(row) for t in range(width)] for row in rows])


class TestPackGroups:
    def test_two_groups_by_hand(self):
        tokens, mask = padded([[11, 12, 13], [14], [21, 22], [23, 24, 25]])
        packed = pack_groups([[1, 2], [3, 4, 5]], tokens, mask)
        #  row:                         0  1  2   3   4  5  6  7   8   9
        assert packed.input_ids.tolist() == [1, 2, 11, 12, 3, 4, 5, 21, 23, 24]
        assert packed.position_ids.tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 3, 4]
        assert packed.prompt_lengths.tolist() == [2, 3]
        assert packed.response_lengths.tolist() == [2, 0, 1, 2]
        assert packed.group_of.tolist() == [0, 0, 1, 1]
        assert packed.predict_index.tolist() == [1, 2, 3, 1, 6, 7, 6, 8, 9]
        assert packed.targets.tolist() == [11, 12, 13, 14, 21, 22, 23, 24, 25]
        assert torch.equal(packed.mask, mask)

    def test_unequal_groups_and_wider_padding(self):
        rows = [[7, 8], [9], [6, 6, 6]]
        group_of = torch.tensor([0, 1, 1])
        narrow = pack_groups([[1], [2, 3]], *padded(rows), group_of=group_of)
        wide = pack_groups([[1], [2, 3]], *padded(rows, width=9), group_of=group_of)
        assert narrow.input_ids.tolist() == [1, 7, 2, 3, 6, 6]
        for name in ("input_ids", "position_ids", "predict_index", "targets"):
            assert torch.equal(getattr(narrow, name), getattr(wide, name)), name

    def test_supervised_case_is_prompt_and_response(self):
        packed = pack_groups([[1, 2], [3]], *padded([[4, 5], [6, 7]]))
        assert packed.input_ids.tolist() == [1, 2, 4, 3, 6]
        assert packed.predict_index.tolist() == [1, 2, 3, 4]

    def test_to_rows_undoes_the_flattening(self):
        tokens, mask = padded([[4, 5, 6], [7]])
        packed = pack_groups([[1]], tokens, mask)
        assert torch.equal(packed.to_rows(packed.targets.float()), tokens.float())

    def test_tensors_keep_their_values(self):
        tokens, mask = padded([[4, 5], [6]])
        before = tokens.clone(), mask.clone()
        pack_groups([[1]], tokens, mask)
        assert torch.equal(tokens, before[0])
        assert torch.equal(mask, before[1])

    @pytest.mark.parametrize(
        ("prompts", "rows", "group_of", "message"),
        [
            ([[1], []], [[2], [3]], None, r"at least one token; empty: \[1\]"),
            ([[1], [2]], [[2], [3], [4]], None, "3 responses are no equal groups of 2 prompts"),
            ([[1], [2]], [[2], [3]], [1, 0], "non-decreasing"),
            ([[1], [2]], [[2], [3]], [0, 2], "within the 2 prompts"),
            ([[1], [2]], [[2], [3]], [0], r"group_of \(1,\)"),
        ],
    )
    def test_what_cannot_be_packed(self, prompts, rows, group_of, message):
        with pytest.raises(ValueError, match=message):
            pack_groups(prompts, *padded(rows), group_of=None if group_of is None else torch.tensor(group_of))

    def test_a_hole_in_the_mask(self):
        with pytest.raises(ValueError, match="True up to the response's length"):
            pack_groups([[1]], torch.tensor([[5, 6]]), torch.tensor([[False, True]]))

    def test_row_starts_by_hand(self):
        starts = row_starts(torch.tensor([2, 3]), torch.tensor([2, 0, 1, 2]), torch.tensor([0, 0, 1, 1]))
        assert [start.tolist() for start in starts] == [[0, 4], [2, 4, 7, 8]]


class TestBalancedBins:
    def test_by_hand(self):
        assert balanced_bins([7, 5, 4, 3, 1], n_bins=2) == [[0, 3], [1, 2, 4]]

    @QUICK
    @given(st.lists(st.integers(1, 50), min_size=1, max_size=30), st.integers(1, 8))
    def test_a_partition_without_an_empty_bin(self, sizes, n_bins):
        n_bins = min(n_bins, len(sizes))
        bins = balanced_bins(sizes, n_bins=n_bins)
        assert len(bins) == n_bins
        assert all(bins)
        assert sorted(i for items in bins for i in items) == list(range(len(sizes)))
        heaviest = max(sum(sizes[i] for i in items) for items in bins)
        assert heaviest <= sum(sizes) / n_bins + max(sizes)

    @pytest.mark.parametrize("n_bins", [0, 3])
    def test_more_bins_than_items(self, n_bins):
        with pytest.raises(ValueError, match=f"cannot fill {n_bins} bins with 2 items"):
            balanced_bins([1, 2], n_bins=n_bins)


def tokens_of(bins, prompts, responses):
    return [sum(prompts[p.group] + sum(responses[p.group][i] for i in p.responses) for p in pieces) for pieces in bins]


groups = st.lists(
    st.tuples(st.integers(1, 20), st.lists(st.integers(0, 12), min_size=1, max_size=6)), min_size=1, max_size=8
)


class TestSplitByBudget:
    @QUICK
    @given(groups, st.integers(32, 120))
    def test_every_response_once_and_no_bin_over_budget(self, groups, budget):
        prompts, responses = [g[0] for g in groups], [g[1] for g in groups]
        bins = split_by_budget(prompts, responses, token_budget=budget)
        seen = sorted((p.group, i) for pieces in bins for p in pieces for i in p.responses)
        assert seen == [(g, i) for g, rows in enumerate(responses) for i in range(len(rows))]
        tokens = tokens_of(bins, prompts, responses)
        assert max(tokens) <= budget
        assert all(bins)
        for pieces in bins:
            assert all(first.group < second.group for first, second in pairwise(pieces))
        assert bins == split_by_budget(prompts, responses, token_budget=budget)

    @QUICK
    @given(groups, st.integers(32, 120))
    def test_nearly_as_few_bins_as_can_be(self, groups, budget):
        prompts, responses = [g[0] for g in groups], [g[1] for g in groups]
        bins = split_by_budget(prompts, responses, token_budget=budget)
        apart = sum(prompt + row for prompt, rows in groups for row in rows)
        assert len(bins) <= 1 + 2 * apart // budget

    @QUICK
    @given(groups, st.integers(32, 120), st.integers(1, 4))
    def test_any_larger_number_of_bins_can_be_forced(self, groups, budget, more):
        prompts, responses = [g[0] for g in groups], [g[1] for g in groups]
        fewest = len(split_by_budget(prompts, responses, token_budget=budget))
        n_bins = min(fewest + more, sum(map(len, responses)))
        bins = split_by_budget(prompts, responses, token_budget=budget, n_bins=n_bins)
        assert len(bins) == n_bins
        assert all(bins)
        assert max(tokens_of(bins, prompts, responses)) <= budget

    def test_everything_in_one_bin_when_it_fits(self):
        (pieces,) = split_by_budget([10, 10], [[5, 5], [5, 5]], token_budget=40)
        assert [(p.group, p.responses) for p in pieces] == [(0, (0, 1)), (1, (0, 1))]

    def test_whole_groups_stay_together(self):
        bins = split_by_budget([10, 10], [[5, 5], [5, 5]], token_budget=39)
        assert [[(p.group, p.responses) for p in pieces] for pieces in bins] == [[(0, (0, 1))], [(1, (0, 1))]]

    def test_a_group_beyond_the_budget_is_cut(self):
        bins = split_by_budget([10], [[10, 10, 10, 10]], token_budget=30)
        assert [[p.responses for p in pieces] for pieces in bins] == [[(0, 2)], [(1, 3)]]

    def test_forced_to_single_responses(self):
        bins = split_by_budget([4, 4], [[1, 2], [3, 4]], token_budget=100, n_bins=4)
        assert sorted(p.responses for pieces in bins for p in pieces) == [(0,), (0,), (1,), (1,)]

    @pytest.mark.parametrize(
        ("budget", "n_bins", "message"),
        [
            (17, None, "token budget of 17 is below 18: group 1 has a prompt of 8 tokens and a response that takes 10"),
            (100, 4, "cannot fill 4 micro-batches with 3 responses"),
            (20, 1, "27 tokens do not fit 1 micro-batches of 20 tokens"),
        ],
    )
    def test_what_cannot_be(self, budget, n_bins, message):
        with pytest.raises(ValueError, match=message):
            split_by_budget([5, 8], [[1, 3], [10]], token_budget=budget, n_bins=n_bins)
