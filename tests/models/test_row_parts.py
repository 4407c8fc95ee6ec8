"""Parts of a packed row, and the tokens of each that ask: counted by hand on a small row."""

import pytest
import torch

from rlhf_lightning.functional.packing import pack_groups
from rlhf_lightning.models.attention_layout import Lengths, attention_layout
from rlhf_lightning.models.row_parts import row_parts, shares

# the row, by its tokens: prompt 3 4 5, responses 20 21 (of three tokens) and none (of one); prompt 6 7, response 25 26
PROMPTS, GROUPS = [[3, 4, 5], [6, 7]], [0, 0, 1]
TOKENS = torch.tensor([[20, 21, 22], [23, 0, 0], [25, 26, 27]])


def packed():
    return pack_groups(PROMPTS, TOKENS, TOKENS > 0, group_of=torch.tensor(GROUPS))


def layout_of(wanted):
    return attention_layout(packed(), torch.float64, torch.tensor(wanted))


def test_parts_stand_one_behind_the_other_and_are_made_once():
    layout = layout_of([2, 3, 4, 6, 7, 8])
    first, second = row_parts(layout, 2, wanted=False)
    assert (first.tokens, second.tokens) == (slice(0, 5), slice(5, 9))
    assert (first.layout.prompts, second.layout.prompts) == ((1, 3), (1, 2))
    assert second.layout.scatter.tolist() == [0, 1, 2, 3]
    assert first.queries.rows is None
    assert row_parts(layout, 2, wanted=False)[0] is first
    assert [part.tokens for part in row_parts(layout, 1, wanted=False)] == [slice(0, 9)]


def test_only_wanted_tokens_ask():
    part = row_parts(layout_of([2, 4, 6, 8]), 1, wanted=True)[0]
    asking = part.queries
    assert asking.rows.tolist() == [2, 4, 6, 8]
    assert asking.spread.tolist() == [4, 4, 0, 4, 1, 4, 2, 4, 3]
    assert asking.prompts == (2, 1)
    # slots: the last tokens of both prompts, then the responses 20 21 and 25 26
    assert asking.unused[:, 0].tolist() == [False, False, True, False, True, False]
    assert asking.scatter.tolist() == [0, 3, 1, 5]
    assert asking.gather[~asking.unused[:, 0]].tolist() == [0, 2, 1, 3]
    assert asking.prompt_mask[:, 0, 0].tolist() == [[0, 0, 0], [0, 0, float("-inf")]]


@pytest.mark.parametrize("wanted", [[1, 3], [5, 8], list(range(9))])
def test_a_token_within_a_prompt_makes_all_ask(wanted):
    layout = layout_of(wanted)
    assert layout.wanted is None
    assert row_parts(layout, 1, wanted=True)[0].queries.rows is None


def test_what_a_token_that_does_not_ask_gets_is_nothing():
    asking = row_parts(layout_of([2, 4, 6, 8]), 1, wanted=True)[0].queries
    own = torch.tensor([[1.0], [2.0], [3.0], [4.0]])
    assert asking.of(torch.arange(9)[:, None]).tolist() == [[2], [4], [6], [8]]
    assert asking.onto(torch.ones(9, 1), own)[:, 0].tolist() == [1, 1, 2, 1, 3, 1, 4, 1, 5]


@pytest.mark.parametrize(
    ("tokens", "count", "want"),
    [
        ([4, 4, 4, 4], 2, [(0, 2), (2, 4)]),
        ([1, 1, 1, 9], 2, [(0, 3), (3, 4)]),
        ([1, 1, 1, 10], 2, [(0, 4)]),  # ten of thirteen is more than three quarters
        ([5, 5, 5], 2, [(0, 1), (1, 3)]),
        ([5], 2, [(0, 1)]),
        ([5, 5], 4, [(0, 1), (1, 2)]),
        ([2, 2, 2, 2, 2, 2], 3, [(0, 2), (2, 4), (4, 6)]),
    ],
)
def test_groups_are_shared_out_evenly_or_not_at_all(tokens, count, want):
    lengths = Lengths(torch.tensor(tokens), torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64))
    assert [(s.start, s.stop) for s in shares(lengths, count)] == want
