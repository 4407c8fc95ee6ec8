"""Rendered groups that are longer than the model, or its user, allows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from rlhf_lightning.data._tasks import described
from rlhf_lightning.errors import DataError
from rlhf_lightning.reward_types import JudgedGroup, Pair, RenderedGroup


@dataclass(frozen=True)
class LengthLimit:
    """Refuses what is too long, or leaves it out.

    Attributes:
        tokens: Most tokens of a prompt and a response; None is no limit.
        drop: Whether responses that are too long are left out, instead of being refused.
    """

    tokens: int | None = None
    drop: bool = False

    def fitted(self, group: RenderedGroup) -> RenderedGroup | None:
        """The group, without the responses that are too long; None if nothing is left to learn from.

        Raises:
            DataError: If the prompt is empty; if a response is too long and none is to be left out: names the group,
                where it comes from, its length and the limit.
        """
        if not group.prompt:
            raise DataError(f"{described(group.group.task, group.group.problem)} is empty: it has no tokens")
        kept = [i for i, response in enumerate(group.responses) if self._fits(group, response)]
        if len(kept) == len(group.responses):
            return group
        if not self.drop:
            raise DataError(
                f"{described(group.group.task, group.group.problem)}: prompt and longest response have "
                f"{len(group.prompt)} + {max(map(len, group.responses))} tokens, but at most {self.tokens} fit. "
                "Shorten it, or set data's drop_long: true"
            )
        return _only(group, kept)

    def _fits(self, group: RenderedGroup, response: Sequence[int]) -> bool:
        return self.tokens is None or len(group.prompt) + len(response) <= self.tokens


def _only(group: RenderedGroup, kept: list[int]) -> RenderedGroup | None:
    pairs = tuple(
        Pair(kept.index(pair.chosen), kept.index(pair.rejected), pair.margin)
        for pair in group.group.pairs
        if {pair.chosen, pair.rejected} <= set(kept)
    )
    judged = replace(group.group, responses=tuple(group.group.responses[i] for i in kept), pairs=pairs)
    if not pairs and not _is_labelled(judged):
        return None
    responses, step_ends = tuple(group.responses[i] for i in kept), tuple(group.step_ends[i] for i in kept)
    return RenderedGroup(judged, group.prompt, responses, step_ends)


def _is_labelled(group: JudgedGroup) -> bool:
    return any(
        response.correct is not None or any(step.label is not None for step in response.steps)
        for response in group.responses
    )
