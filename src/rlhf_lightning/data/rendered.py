"""Groups of several sources as a tokenizer reads them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real

from rlhf_lightning.data.judged import render_groups
from rlhf_lightning.data.render import Renderer
from rlhf_lightning.errors import PartError
from rlhf_lightning.protocols import RewardSource
from rlhf_lightning.reward_types import JudgedGroup, JudgedResponse, RenderedGroup

KEEP_TOKENS = 2_000_000
"""Tokens of rendered groups that are kept at most (some 50 MB): small sets are rendered once, large ones stream."""

Place = tuple[int, int]
"""Number of a source, and of one of its groups."""


class RenderedGroups:
    """Renders groups when they are asked for, and keeps the first ones.

    Args:
        renderer: Renders.
        sources: Where the groups are.
        delimiter: What stands between two steps.
        keep_tokens: Tokens to keep at most.
    """

    def __init__(
        self,
        renderer: Renderer,
        sources: Sequence[RewardSource],
        delimiter: str = "\n",
        keep_tokens: int = KEEP_TOKENS,
    ) -> None:
        self._renderer, self._sources, self._delimiter, self._room = renderer, sources, delimiter, keep_tokens
        self._kept: dict[Place, RenderedGroup] = {}

    def __call__(self, places: Sequence[Place]) -> list[RenderedGroup]:
        """The groups at these places; each is read once, in the order of its file, which costs least."""
        missing = sorted({place for place in places if place not in self._kept})
        groups = [checked_group(self._sources[which], index) for which, index in missing]
        rendered = render_groups(self._renderer, groups, self._delimiter)
        fresh = dict(zip(missing, rendered, strict=True))
        for place, group in fresh.items():
            tokens = len(group.prompt) + sum(map(len, group.responses))
            if tokens <= self._room:
                self._kept[place] = group
                self._room -= tokens
        return [fresh[place] if place in fresh else self._kept[place] for place in places]


def checked_group(source: RewardSource, index: int) -> JudgedGroup:
    """A source's group, all numbers of which can be learnt from.

    Raises:
        PartError: If it is no group with responses, a label is no probability, a margin is not finite, a step ends
            outside its response, or a pair names a response that there is not: names the source and the group.
    """
    given = source.group(index)
    what = f"reward data {source.label}: group {index}"
    if not isinstance(given, JudgedGroup) or not all(isinstance(one, JudgedResponse) for one in given.responses):
        raise PartError(f"{what} is a {type(given).__name__}, not a JudgedGroup of JudgedResponse")
    if not given.responses:
        raise PartError(f"{what} has no responses")
    for number, response in enumerate(given.responses):
        where = f"{what}, response {number}"
        if not isinstance(response.text, str):
            raise PartError(f"{where}: its text is a {type(response.text).__name__}")
        for name, label in [
            ("correct", response.correct),
            *(("a step's label", step.label) for step in response.steps),
        ]:
            if label is not None and not (isinstance(label, Real) and 0 <= float(label) <= 1):
                raise PartError(f"{where}: {name} is {label!r}, not a probability in [0, 1] or None")
        for step in response.steps:
            if not isinstance(step.end, int) or not 0 <= step.end <= len(response.text):
                raise PartError(f"{where}: a step ends at {step.end!r}, not within its {len(response.text)} characters")
    for pair in given.pairs:
        if pair.chosen == pair.rejected or not {pair.chosen, pair.rejected} <= set(range(len(given.responses))):
            raise PartError(f"{what}: a pair of responses {pair.chosen} and {pair.rejected} of {len(given.responses)}")
        if not isinstance(pair.margin, Real) or not math.isfinite(pair.margin):
            raise PartError(f"{what}: a pair's margin is {pair.margin!r}, not a finite number")
    return given
