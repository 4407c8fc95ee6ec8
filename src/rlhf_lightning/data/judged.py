"""From judged responses to tokens: which token ends each step, and which is the final one."""

from __future__ import annotations

from collections.abc import Sequence

from rlhf_lightning.data.render import Encoded, Renderer
from rlhf_lightning.data.steps import step_ends
from rlhf_lightning.errors import DataError
from rlhf_lightning.reward_types import JudgedGroup, JudgedResponse, RenderedGroup
from rlhf_lightning.types import Prompt


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
