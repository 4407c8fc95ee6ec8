"""Contract of sources of judged responses."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise

from rlhf_lightning.data.rows import question_number
from rlhf_lightning.protocols import RewardSource
from rlhf_lightning.reward_types import JudgedGroup, JudgedResponse
from rlhf_lightning.testing.report import Check, violated

FEW = 32
"""Groups that the checks look at one by one."""


def source_sizes(make: Callable[[], RewardSource]) -> None:
    """A name, at least one group once it is open, and counts that are no less than what there is."""
    source = _opened(make)
    violated(not isinstance(getattr(source, "label", None), str), "has no label")
    violated(len(source) < 1, f"has {len(source)} groups")
    negative = {name: count for name, count in source.counts().items() if count < 0}
    violated(negative, f"counts are negative: {negative}")


def source_repeats(make: Callable[[], RewardSource]) -> None:
    """A group is the same each time, whatever was read between, and in another instance."""
    source = _opened(make)
    first = list(_groups(source))
    backwards = [source.group(index) for index in reversed(range(len(first)))][::-1]
    violated(first != backwards, "groups differ when they are read in another order")
    violated(first != list(_groups(_opened(make))), "two instances have different groups")


def source_questions(make: Callable[[], RewardSource]) -> None:
    """``question_key`` is the number of the group's question, so that it is held out of all sources alike."""
    source = _opened(make)
    for index, group in enumerate(_groups(source)):
        key, expected = source.question_key(index), question_number(group.problem)
        violated(key != expected, f"question_key({index}) is {key}, question_number of its problem {expected}")


def source_groups(make: Callable[[], RewardSource]) -> None:
    """Groups have responses, pairs of them, and labels that are probabilities."""
    for index, group in enumerate(_groups(_opened(make))):
        count = len(group.responses)
        violated(count < 1, f"group {index} has no response")
        for pair in group.pairs:
            inside = {pair.chosen, pair.rejected} <= set(range(count)) and pair.chosen != pair.rejected
            violated(not inside, f"group {index} has {count} responses, but the pair {pair}")
        for response in group.responses:
            _check_response(f"group {index}", response)


def _check_response(where: str, response: JudgedResponse) -> None:
    labels = [label for label in (response.correct, *(step.label for step in response.steps)) if label is not None]
    violated(any(not 0 <= label <= 1 for label in labels), f"{where}: labels {labels} are not all in [0, 1]")
    ends = [step.end for step in response.steps]
    inside = all(0 <= end <= len(response.text) for end in ends)
    ascending = all(before <= after for before, after in pairwise(ends))
    violated(not inside or not ascending, f"{where}: steps end at {ends} in a text of {len(response.text)} characters")


def _opened(make: Callable[[], RewardSource]) -> RewardSource:
    source = make()
    source.open()
    return source


def _groups(source: RewardSource) -> Iterator[JudgedGroup]:
    return (source.group(index) for index in range(min(FEW, len(source))))


CHECKS: Mapping[str, Check] = {
    "opens": source_sizes,
    "the same each time": source_repeats,
    "questions": source_questions,
    "groups": source_groups,
}
"""The contract."""
