"""A response put together from its steps."""

from __future__ import annotations

from collections.abc import Sequence

from rlhf_lightning.reward_types import JudgedResponse, Step


def joined(
    steps: Sequence[tuple[str, float | None]], delimiter: str, *, correct: float | None = None, finished: bool = True
) -> JudgedResponse:
    """The response whose steps these are; their ends are offsets, whatever the steps themselves hold.

    Args:
        steps: Text and label of each. White space at a text's end belongs to no step.
        delimiter: What is put between two of them.
        correct: Label of the whole.
        finished: Whether the response ends there.
    """
    texts = [text for text, _ in steps]
    ends, start = [], 0
    for text, label in steps:
        ends.append(Step(start + len(text.rstrip()), label))
        start += len(text) + len(delimiter)
    return JudgedResponse(delimiter.join(texts), correct, tuple(ends), finished)
