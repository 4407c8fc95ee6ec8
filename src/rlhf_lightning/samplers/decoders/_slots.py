"""How the rows of a batch are grouped so that those of one prompt attend to a single copy of its keys and values.

S slots of W rows each; a slot has one prompt. A prompt with more than W rows takes several slots (and so several
copies of its keys and values); a slot that is not full is filled with repeats, whose results nobody looks at.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

MOST_WASTE = 1.1
"""Rows, repeats included, may exceed sequences by this factor: wide slots save memory traffic, repeats cost work."""


@dataclass(frozen=True)
class Slots:
    """A grouping of B sequences.

    Attributes:
        width: W.
        prompts: S prompt numbers.
        members: S·W sequence numbers, repeats included.
        places: B positions in ``members``, where each sequence's own row is.
    """

    width: int
    prompts: tuple[int, ...]
    members: tuple[int, ...]
    places: tuple[int, ...]

    @property
    def trivial(self) -> bool:
        """Whether row i is sequence i, with no repeats."""
        return self.members == self.places == tuple(range(len(self.members)))


def group(owners: Sequence[int]) -> Slots:
    """The widest slots that waste few rows.

    Args:
        owners: (B,) the prompt of each sequence; at least one sequence.
    """
    by_prompt: dict[int, list[int]] = defaultdict(list)
    for sequence, owner in enumerate(owners):
        by_prompt[owner].append(sequence)
    sizes = [len(members) for members in by_prompt.values()]
    width = next(w for w in range(max(sizes), 0, -1) if sum(-(-n // w) for n in sizes) * w <= MOST_WASTE * len(owners))
    return _lay_out(by_prompt, width, len(owners))


def _lay_out(by_prompt: dict[int, list[int]], width: int, count: int) -> Slots:
    prompts: list[int] = []
    members: list[int] = []
    places = [0] * count
    for prompt, own in by_prompt.items():
        for start in range(0, len(own), width):
            slot = own[start : start + width]
            for offset, sequence in enumerate(slot):
                places[sequence] = len(members) + offset
            prompts.append(prompt)
            members.extend(slot + slot[:1] * (width - len(slot)))
    return Slots(width, tuple(prompts), tuple(members), tuple(places))
