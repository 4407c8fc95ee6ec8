import pytest

from rlhf_lightning.samplers.decoders._slots import group


def test_whole_groups_make_one_slot_each():
    slots = group([0, 0, 0, 1, 1, 1])
    assert (slots.width, slots.prompts, slots.members) == (3, (0, 1), (0, 1, 2, 3, 4, 5))
    assert slots.trivial


def test_uneven_groups_take_slots_that_waste_little():
    slots = group([0, 0, 0, 0, 1])
    assert (slots.width, slots.prompts, slots.members, slots.places) == (
        1,
        (0, 0, 0, 0, 1),
        (0, 1, 2, 3, 4),
        (0, 1, 2, 3, 4),
    )


def test_a_slot_that_is_not_full_repeats_its_first():
    slots = group([0] * 10 + [1] * 9)
    assert slots.width == 10
    assert slots.members == (*range(10), *range(10, 19), 10)
    assert slots.places == tuple(range(19))
    assert not slots.trivial


@pytest.mark.parametrize("owners", [[3], [2, 2, 5], [0, 1, 0, 1, 0], [4] * 7 + [1] * 3 + [9] * 6])
def test_every_sequence_has_a_row_of_its_own_prompt(owners):
    slots = group(owners)
    assert len(slots.members) == slots.width * len(slots.prompts) <= 1.1 * len(owners)
    assert sorted(set(slots.members)) == list(range(len(owners)))
    for row, member in enumerate(slots.members):
        assert slots.prompts[row // slots.width] == owners[member]
    assert [slots.members[place] for place in slots.places] == list(range(len(owners)))
