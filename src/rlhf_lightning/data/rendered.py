"""Groups of several sources as a tokenizer reads them."""

from __future__ import annotations

from collections.abc import Sequence

from rlhf_lightning.data.judged import render_groups
from rlhf_lightning.data.render import Renderer
from rlhf_lightning.protocols import RewardSource
from rlhf_lightning.reward_types import RenderedGroup

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
        groups = [self._sources[which].group(index) for which, index in missing]
        rendered = render_groups(self._renderer, groups, self._delimiter)
        fresh = dict(zip(missing, rendered, strict=True))
        for place, group in fresh.items():
            tokens = len(group.prompt) + sum(map(len, group.responses))
            if tokens <= self._room:
                self._kept[place] = group
                self._room -= tokens
        return [fresh[place] if place in fresh else self._kept[place] for place in places]
