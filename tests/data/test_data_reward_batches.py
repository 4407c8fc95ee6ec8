"""Which places of a response are supervised, what they weigh, and that pairs stay together."""

import pytest
import torch

from rlhf_lightning.data.judged import render_groups
from rlhf_lightning.data.render import Renderer
from rlhf_lightning.data.reward_batches import Place, Supervision, denominators_of, places_of, reward_updates
from rlhf_lightning.errors import ConfigError, DataError
from rlhf_lightning.models.reward_packs import atoms_of
from rlhf_lightning.models.tiny import TinyLlama
from rlhf_lightning.reward_types import JudgedGroup, JudgedResponse, Pair, RenderedGroup, Step
from rlhf_lightning.types import Problem


def rendered(responses, pairs=(), task="math", prompt=(3, 4)):
    """``responses``: number of tokens, correct, and (end token, label) of each step."""
    judged = tuple(JudgedResponse("", c, tuple(Step(0, y) for _, y in steps)) for _, c, steps in responses)
    tokens = tuple(tuple(range(10, 10 + n)) for n, _, _ in responses)
    ends = tuple(tuple(e for e, _ in steps) for _, _, steps in responses)
    return RenderedGroup(JudgedGroup(Problem("q1", ""), task, judged, pairs), prompt, tokens, ends)


@pytest.mark.parametrize(
    ("response", "outcome", "process"),
    [
        ((5, 1.0, [(1, 1.0), (3, 0.0)]), [Place(4, 1.0)], [Place(1, 1.0), Place(3, 0.0), Place(4, 1.0)]),
        ((4, 0.0, [(1, 1.0), (3, 1.0)]), [Place(3, 0.0)], [Place(1, 1.0), Place(3, 0.0)]),  # cut off: final wins
        ((4, None, [(1, 1.0), (3, 0.5)]), [Place(3, None)], [Place(1, 1.0), Place(3, 0.5)]),
        ((4, None, [(1, 1.0), (2, 0.25)]), [Place(3, None)], [Place(1, 1.0), Place(2, 0.25), Place(3, 0.25)]),
        ((3, 1.0, [(0, None), (1, 1.0)]), [Place(2, 1.0)], [Place(0, None), Place(1, 1.0), Place(2, 1.0)]),
        ((2, 1.0, []), [Place(1, 1.0)], [Place(1, 1.0)]),
        ((2, None, []), [Place(1, None)], [Place(1, None)]),
    ],
)
def test_places_of_a_response(response, outcome, process):
    group = rendered([response])
    assert list(places_of(group, 0, process=False)) == outcome
    assert list(places_of(group, 0, process=True)) == process


@pytest.mark.parametrize(
    ("text", "ends", "finished", "delimiter", "expected"),
    [
        ("3+2\n=5", (3, 6), True, "\n", [(2, 0.25), (6, 0.75)]),  # the second ends with the text: on the end token
        ("3+2\n=5\n", (3, 6), True, "\n", [(2, 0.25), (7, 0.75)]),  # a delimiter behind it is nothing
        ("3+2;=5;", (3, 6), True, ";", [(2, 0.25), (7, 0.75)]),
        ("3+2\n=5", (3, 6), False, "\n", [(2, 0.25), (5, 0.75)]),  # cut off: on the last token
        ("3+2\n=5", (3,), True, "\n", [(2, 0.25), (6, 0.25)]),  # text without a label follows: a place of its own
    ],
)
def test_the_verdict_on_the_last_step_is_that_on_the_whole(text, ends, finished, delimiter, expected):
    """Characters are tokens. S steps have S places, whose labels count once each."""
    renderer = Renderer(TinyLlama(hidden=16, layers=1, heads=2).tokenizer())
    steps = tuple(Step(end, label) for end, label in zip(ends, (0.25, 0.75), strict=False))
    judged = JudgedGroup(Problem("q", "3+2="), "math", (JudgedResponse(text, None, steps, finished),))
    (group,) = render_groups(renderer, [judged], delimiter)
    assert len(group.responses[0]) == len(text) + finished
    assert [(place.token, place.label) for place in places_of(group, 0, process=True)] == expected
    assert denominators_of([group], Supervision(process=True)).labels == 2


def test_responses_that_pairs_connect_are_one_atom():
    group = rendered([(1, None, [])] * 6, (Pair(0, 3), Pair(5, 3), Pair(1, 2)))
    assert atoms_of(group) == [(0, 3, 5), (1, 2), (4,)]


GROUPS = [
    rendered([(5, 1.0, [(1, 1.0), (3, 0.0)]), (2, None, []), (3, 0.0, [])]),
    rendered([(2, None, []), (3, None, [])], (Pair(1, 0, 0.5),), task="chat"),
]


def test_weights_by_hand():
    supervision = Supervision(True, 0.5, 2.0, {"math": 3.0, "chat": 0.1})
    ((batch,),) = reward_updates([GROUPS], supervision, token_budget=100)
    each = 0.5 * 3.0 / 4
    assert batch.label_weights.tolist() == pytest.approx([each, each, each, 0, each, 0, 0])
    assert batch.labels.tolist() == [1, 0, 1, 0, 0, 0, 0]
    assert batch.final.tolist() == [2, 3, 4, 5, 6]
    assert batch.pair_weights.tolist() == pytest.approx([0.2])
    assert (batch.chosen.tolist(), batch.rejected.tolist(), batch.margins.tolist()) == ([4], [3], [0.5])


def test_weights_by_response():
    ((batch,),) = reward_updates([GROUPS], Supervision(True, by_response=True), token_budget=100)
    assert batch.label_weights.tolist() == pytest.approx([1 / 6, 1 / 6, 1 / 6, 0, 1 / 2, 0, 0])


def test_places_point_at_their_tokens():
    ((batch,),) = reward_updates([GROUPS], Supervision(True), token_budget=100)
    assert batch.packed.input_ids[batch.places].tolist() == [11, 13, 14, 11, 12, 11, 12]
    assert batch.tokens == 2 + 5 + 2 + 3 + 2 + 2 + 3
    assert batch.packed.position_ids[batch.places].tolist() == [3, 5, 6, 3, 4, 3, 4]


def test_a_pair_shares_its_micro_batch_and_every_response_stands_once():
    big = rendered([(4, 1.0, [])] * 5, (Pair(0, 4), Pair(2, 1)))
    (batches,) = reward_updates([[big, *GROUPS]], Supervision(True), token_budget=12)
    assert sum(len(batch.chosen) for batch in batches) == 3
    assert sum(len(batch.final) for batch in batches) == 10
    assert sum(float(batch.label_weights.sum()) for batch in batches) == pytest.approx(1.0)
    assert sum(float(batch.pair_weights.sum()) for batch in batches) == pytest.approx(1.0)
    for batch in batches:
        assert batch.chosen.dtype == torch.int64 and batch.tokens <= 12


def test_denominators_by_hand():
    assert denominators_of(GROUPS, Supervision()).labels == 2
    assert denominators_of(GROUPS, Supervision(True)).labels == 4
    assert denominators_of(GROUPS, Supervision(True, by_response=True)).labels == 2
    assert denominators_of(GROUPS, Supervision()).pairs == 1


def test_what_cannot_be():
    unlabelled = rendered([(2, None, [(0, 1.0)])])
    with pytest.raises(
        DataError, match=r"1 groups \(math\) has neither preference pairs nor labels of whole responses"
    ):
        reward_updates([[unlabelled]], Supervision(), token_budget=100)
    assert reward_updates([[unlabelled]], Supervision(True), token_budget=100)
    message = "6 is below 7: problem q1 of task chat has a prompt of 2 tokens and 2 responses that pairs connect of 5"
    with pytest.raises(ConfigError, match=message):
        reward_updates([GROUPS[1:]], Supervision(), token_budget=6)
