"""From judged responses to tokens: where steps end, what is too long, and groups as a tokenizer reads them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from numbers import Real

from rlhf_lightning.data.prompts import described
from rlhf_lightning.data.render import Encoded, Renderer
from rlhf_lightning.errors import DataError, PartError
from rlhf_lightning.protocols import RewardSource
from rlhf_lightning.reward_types import JudgedGroup, JudgedResponse, Pair, RenderedGroup
from rlhf_lightning.types import Prompt


def step_ends(text: str, delimiter: str = "\n") -> tuple[int, ...]:
    """How many characters stand up to each step's end, delimiters left out; ``"22+12⏎=34"`` gives ``(5, 9)``.

    Parts of nothing but white space are no steps. A text without any part has no step.

    Args:
        text: The response.
        delimiter: What stands between two steps; never empty.

    Raises:
        ValueError: If the delimiter is empty.
    """
    return tuple(end for _, end in _spans(text, delimiter))


def step_starts(text: str, delimiter: str = "\n") -> tuple[int, ...]:
    """Where each step begins: behind the delimiter before it; ``"22+12⏎=34"`` gives ``(0, 6)``.

    Raises:
        ValueError: If the delimiter is empty.
    """
    return tuple(start for start, _ in _spans(text, delimiter))


def _spans(text: str, delimiter: str) -> list[tuple[int, int]]:
    if not delimiter:
        raise ValueError("the delimiter between steps must not be empty")
    spans, start = [], 0
    for part in text.split(delimiter):
        if part.strip():
            spans.append((start, start + len(part.rstrip())))
        start += len(part) + len(delimiter)
    return spans


def render_groups(renderer: Renderer, groups: Sequence[JudgedGroup], delimiter: str = "\n") -> list[RenderedGroup]:
    """The groups' tokens.

    A response's tokens are those of prompt and response encoded together, as long as that leaves the prompt's own
    tokens as they are; else those of the response alone. A response that finished ends with the end-of-sequence token.
    A step ends at the last token that holds any of its characters; the last one at the response's final token, where
    nothing that would be a step follows it: the verdict on the last step is that on the whole, and is given once.

    Args:
        renderer: Makes the tokens.
        groups: What to render.
        delimiter: What stands between two steps.

    Raises:
        ModelSourceError: If the tokenizer tells no offsets, or has no end-of-sequence token.
        DataError: If a response that was cut off is empty, so that there is no token to score.
    """
    if renderer.chat and renderer.ending == "template":
        return [_conversation(renderer, group, delimiter) for group in groups]
    prompts = renderer.render([(group.task, index, group.problem) for index, group in enumerate(groups)])
    pairs = [(p, r) for p, group in zip(prompts, groups, strict=True) for r in group.responses]
    together = renderer.encode_with_offsets([prompt.text + response.text for prompt, response in pairs])
    merged = [both.tokens[: len(p.tokens)] != p.tokens for (p, _), both in zip(pairs, together, strict=True)]
    apart = [response.text for (_, response), is_merged in zip(pairs, merged, strict=True) if is_merged]
    alone = iter(renderer.encode_with_offsets(apart, plain=True))
    end = renderer.end
    rendered = iter(
        _response(prompt, response, both, next(alone) if is_merged else None, end, delimiter)
        for (prompt, response), both, is_merged in zip(pairs, together, merged, strict=True)
    )
    return [
        _group(group, prompt, [next(rendered) for _ in group.responses])
        for group, prompt in zip(groups, prompts, strict=True)
    ]


def _conversation(renderer: Renderer, group: JudgedGroup, delimiter: str) -> RenderedGroup:
    """A group whose responses stand in the template as the assistant's turn, up to its very end where they finished.

    The prompt is what all of them begin with, up to where an answer begins.
    """
    turns = renderer.turns(group.problem)
    after = renderer.template.after_answer()
    texts = []
    for response in group.responses:
        text = renderer.template.render([*turns, {"role": "assistant", "content": response.text}], ask=False)
        texts.append(text if response.finished else text.removesuffix(after))
    asked, *whole = renderer.encode_with_offsets([renderer.text(group.problem), *texts])
    shared = min(len(asked.tokens), *(len(one.tokens) - 1 for one in whole))
    for one in whole:
        same = (i for i in range(shared) if one.tokens[i] != asked.tokens[i])
        shared = next(same, shared)
    ends = []
    for text, one, response in zip(texts, whole, group.responses, strict=True):
        shift = text.rfind(response.text.strip()) - (len(response.text) - len(response.text.lstrip()))
        places = [max(0, _last_token(one.spans, step.end + shift) - shared) for step in response.steps]
        if places and not step_ends(response.text[response.steps[-1].end :], delimiter):
            places[-1] = len(one.tokens) - shared - 1
        ends.append(tuple(places))
    tokens = whole[0].tokens[:shared]
    return RenderedGroup(group, tokens, tuple(one.tokens[shared:] for one in whole), tuple(ends))


_Response = tuple[tuple[int, ...], tuple[int, ...]]
"""Tokens, and which of them ends each step."""


def _group(group: JudgedGroup, prompt: Prompt, rendered: Sequence[_Response]) -> RenderedGroup:
    return RenderedGroup(group, prompt.tokens, tuple(r[0] for r in rendered), tuple(r[1] for r in rendered))


def _response(
    prompt: Prompt,
    response: JudgedResponse,
    both: Encoded,
    alone: Encoded | None,
    end: tuple[int, ...],
    delimiter: str,
) -> _Response:
    start = len(prompt.tokens)
    if alone is None:
        tokens, spans, shift = both.tokens[start:], both.spans[start:], len(prompt.text)
    else:
        tokens, spans, shift = alone.tokens, alone.spans, 0
    ends = tuple(_last_token(spans, step.end + shift) for step in response.steps)
    tokens = (*tokens, *end) if response.finished else tokens
    if not tokens:
        raise DataError(f"an empty response to {prompt.text[:40]!r} was cut off: there is no token to score")
    if ends and not step_ends(response.text[response.steps[-1].end :], delimiter):
        ends = (*ends[:-1], len(tokens) - 1)
    return tokens, ends


def _last_token(spans: Sequence[tuple[int, int]], end: int) -> int:
    """The last token that begins before character ``end``; 0 if none does."""
    return max((i for i, (first, after) in enumerate(spans) if first < end and after > first), default=0)


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
